"""The rounds of a stopwatch as they are kept: their metrics, where a run goes on, when it ends.

One process writes the rows, whichever processes time. The rows of a round are appended together, so that a
run that was interrupted goes on. Nothing here imports torch.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.errors import TrialError
from pipeline.metrics.rows import Row, append_rows, read_rows
from pipeline.storage.files import cut_partial_line

TRAINING, INFERENCE = "stopwatch/training_own", "stopwatch/inference_own"
"""Metrics: one visit's time by the primary clock, in ms: what follows the trunk in a step."""

TRUNK = {TRAINING: "stopwatch/training_trunk", INFERENCE: "stopwatch/inference_trunk"}
"""Metric of a visit -> that of what all plans compute alike before it, once a round, in ms."""

WALL = "_wall"
"""How a metric ends that is the same visit's time by the second clock."""

PROCESS = "stopwatch/process"
"""Metric: the index of the process that ran the round, from 0."""

LEAST_ROUNDS = 8
"""Rounds before the first question whether they are enough."""

ROUNDS_PER_LOOK = 4
"""Rounds between two such questions."""

FEWEST_ROUNDS = 3
"""Rounds that run even if the time is over before; fewer support no price."""

ALIKE = ("study", "device", "versions", "commit", "recipe_digest")
"""Fields in which the rows of one run must not differ."""

ENOUGH, TIME_OVER = "the intervals are narrow enough", "the time is over"

Rounds = Generator[list[Row], None, None]
"""The rows of one round after another, without an end."""


@dataclass(frozen=True)
class TimedTrial:
    """What is timed.

    Attributes:
        settings: of the trial whose model is timed; its plan does not matter.
        plans: the baseline first.
        folder: of the rows; its name is that of the trial in them.
        digest: of the study's recipe; decides the order of the visits.
    """

    settings: TrialSettings
    plans: tuple[Plan, ...]
    folder: Path
    digest: str


@dataclass(frozen=True)
class Start:
    """Where a process of the stopwatch begins.

    Attributes:
        first: number of the first round of all processes together.
        like: a row of the run so far; None if there is none.
        process: index of the process, from 0. It runs the rounds ``first + process``, then every
            ``processes``-th.
        processes: how many time at once.
    """

    first: int = 0
    like: Row | None = None
    process: int = 0
    processes: int = 1

    @classmethod
    def after(cls, rows: Sequence[Row]) -> "Start":
        """Return the start of a run that goes on after the rows of complete rounds."""
        return cls(max((row.step for row in rows), default=-1) + 1, rows[0] if rows else None)


@dataclass(frozen=True)
class Until:
    """When the stopwatch stops.

    Attributes:
        seconds: for this call, wall-clock; building the model and the warm-up are included.
        enough: whether the rows so far suffice; asked every ``ROUNDS_PER_LOOK`` rounds.
        progress: told the number of rounds, and the seconds used.
    """

    seconds: float
    enough: Callable[[Sequence[Row]], bool] = lambda rows: False
    progress: Callable[[int, float], None] = lambda rounds, seconds: None


def keep_rounds(run: Callable[[list[Row]], Rounds], path: Path, until: Until) -> str:
    """Append rounds to a file, or go on with that, until it is enough.

    Args:
        run: from the rows so far, of complete rounds, to the next rounds. It is closed at the end.
        path: of the rows; made if missing. A round that was cut short is removed.
        until: when to stop.

    Returns:
        Why it stopped: ``ENOUGH`` or ``TIME_OVER``.

    Raises:
        TrialError: rows that are there were measured otherwise, or whatever ``run`` raises.
    """
    begun = time.monotonic()
    rows = complete_rounds(path)
    number = len({row.step for row in rows})
    with closing(run(list(rows))) as rounds:
        for new in rounds:
            append_rows(path, new)
            rows += new
            number += 1
            used = time.monotonic() - begun
            until.progress(number, used)
            if number >= LEAST_ROUNDS and number % ROUNDS_PER_LOOK == 0 and until.enough(rows):
                return ENOUGH
            if used >= until.seconds and number >= FEWEST_ROUNDS:
                break
    return TIME_OVER


def complete_rounds(path: Path) -> list[Row]:
    """Return the rows of the complete rounds of a file; a round that was cut short is removed from it.

    Args:
        path: need not exist.
    """
    if not path.exists():
        return []
    cut_partial_line(path)
    rows = read_rows(path)
    sizes = Counter(row.step for row in rows)
    complete = [row for row in rows if sizes[row.step] == max(sizes.values())]
    if len(complete) < len(rows):
        path.unlink()
        append_rows(path, complete)
    return complete


def refuse_other_rows(before: Row, now: Row) -> None:
    """Refuse to go on with rows that were measured otherwise.

    Args:
        before: one of the rows so far.
        now: what the next rows will have in common.

    Raises:
        TrialError: they were measured for another study, or on another device, by another commit or other
            versions.
    """
    for field in ALIKE:
        other, own = getattr(before, field), getattr(now, field)
        if other != own:
            raise TrialError(
                f"the stopwatch's times so far were measured with {field} {other or 'none'}, and now it is "
                f"{own or 'none'}; times of both do not mix, so start anew with --again"
            )
