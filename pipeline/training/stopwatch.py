"""The stopwatch: what a plan costs in time, measured in one process, with one model, step by step.

A round visits every plan once, in an order drawn anew, and the baseline twice: two equal visits must not
differ (an A/A test). All visits of a round have the same batch and the same random state. What a machine does
to a round, it does to all plans; what it does within a round, the order spreads over them.

A round has a training step at a learning rate of 0, a detection at batch 1, and on a CPU the parts of a step
that a plan changes. The rows of a round are appended together, so that a run that was interrupted goes on.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.data.formats.fingerprint import fingerprint
from pipeline.errors import TrialError
from pipeline.metrics.recorder import cut_partial_line
from pipeline.metrics.rows import Row, append_rows, read_rows
from pipeline.metrics.timing import Timed, timed_call
from pipeline.runtime.session import LocalSession
from pipeline.training.components.metrics_logger import common_row
from pipeline.training.part_timing import Part, record_parts
from pipeline.training.timed_model import TimedModel, timed_model_of

FOLDER = "stopwatch"
"""Folder of the rows in a study's folder, and the trial that the rows name."""

TRAINING, INFERENCE, PART = "stopwatch/training", "stopwatch/inference", "stopwatch/training_part"
"""Metrics: one visit's time by the primary clock, in ms."""

WALL = "_wall"
"""How a metric ends that is the same visit's time by the second clock."""

WARM_ROUNDS = {"cpu": 1, "cuda": 3}
"""Rounds before the first that counts. A GPU runs a plan once, captures it, and replays it."""

LEAST_ROUNDS = 8
"""Rounds before the first question whether they are enough."""

ROUNDS_PER_LOOK = 4
"""Rounds between two such questions."""

FEWEST_ROUNDS = 3
"""Rounds that run even if the time is over before; fewer support no price."""

ALIKE = ("study", "device", "versions", "commit", "recipe_digest")
"""Fields in which the rows of one run must not differ."""

ENOUGH, TIME_OVER = "the intervals are narrow enough", "the time is over"


@dataclass(frozen=True)
class Until:
    """When the stopwatch stops.

    Attributes:
        seconds: for all rounds of this call together, warm-up included, wall-clock.
        enough: whether the rows so far suffice; asked every ``ROUNDS_PER_LOOK`` rounds.
        progress: told the number of rounds, and the seconds used.
    """

    seconds: float
    enough: Callable[[Sequence[Row]], bool] = lambda rows: False
    progress: Callable[[int, float], None] = lambda rounds, seconds: None


def time_trial(
    settings: TrialSettings, plans: Sequence[Plan], folder: Path, digest: str, until: Until
) -> str:
    """Time the model of a trial under several plans, or go on with that.

    Args:
        settings: the trial; its plan does not matter.
        plans: the baseline first.
        folder: of the rows; its name is that of the trial in them.
        digest: of the study's recipe; decides the order of the visits.
        until: when to stop.

    Returns:
        Why it stopped: ``ENOUGH`` or ``TIME_OVER``.

    Raises:
        TrialError: rows that are there were measured otherwise, or a weight has changed.
        DataError, PlanError, CheckpointError: the settings cannot be met.
    """
    session = LocalSession(folder, settings.device)
    session.recipe = digest
    common = common_row(settings, session, "", fingerprint(settings.data))
    refuse_other_rows(folder, common)  # before the model is built, which takes seconds
    return time_plans(timed_model_of(settings, folder, len(plans)), plans, folder, common, until)


def time_plans(timed: TimedModel, plans: Sequence[Plan], folder: Path, common: Row, until: Until) -> str:
    """Time a model under several plans; rows are appended to ``folder / "rows.jsonl"`` round by round.

    Args:
        timed: the model.
        plans: the baseline first.
        folder: made if missing.
        common: what all rows have in common; its ``recipe_digest`` decides the order of the visits.
        until: when to stop.

    Returns:
        Why it stopped: ``ENOUGH`` or ``TIME_OVER``.

    Raises:
        TrialError: see ``time_trial``.
    """
    begun = time.monotonic()
    resolved = [plan.resolve(timed.model.sites) for plan in plans]
    path = folder / "rows.jsonl"
    rows = refuse_other_rows(folder, common)
    first = max((row.step for row in rows), default=-1) + 1
    rounds = _Rounds(timed, resolved, common)
    for warm in range(WARM_ROUNDS[timed.device.type]):
        rounds.run(warm)
    for done in count(1):
        new = rounds.run(first + done - 1)
        append_rows(path, new)
        rows += new
        used = time.monotonic() - begun
        until.progress(first + done, used)
        look = first + done >= LEAST_ROUNDS and (first + done) % ROUNDS_PER_LOOK == 0
        enough = look and until.enough(rows)
        if enough or (used >= until.seconds and first + done >= FEWEST_ROUNDS):
            break
    timed.check_unchanged()
    return ENOUGH if enough else TIME_OVER


class _Rounds:
    """Runs rounds.

    Args:
        timed: the model.
        plans: resolved, the baseline first.
        common: what all rows have in common.
    """

    def __init__(self, timed: TimedModel, plans: Sequence[Plan], common: Row) -> None:
        self._timed, self._common = timed, common
        self._visits = [plans[0], *plans]
        self._parts = record_parts(timed, plans)

    def run(self, index: int) -> list[Row]:
        """Run one round; return its rows."""
        orders = (draw_order(self._common.recipe_digest, index, kind, size) for kind, size in self._kinds())
        training, inference, parts = orders
        rows = [row for at, i in enumerate(training) for row in self._train(index, at, self._visits[i])]
        rows += [row for at, i in enumerate(inference) for row in self._detect(index, at, self._visits[i])]
        rows += [row for at, i in enumerate(parts) for row in self._run_part(index, at, self._parts[i])]
        return rows

    def _kinds(self) -> list[tuple[str, int]]:
        return [(TRAINING, len(self._visits)), (INFERENCE, len(self._visits)), (PART, len(self._parts))]

    def _train(self, index: int, at: int, plan: Plan) -> list[Row]:
        self._timed.use(plan, index)
        took = timed_call(self._timed.train, self._timed.device)
        self._timed.restore()
        return self._rows(TRAINING, plan, index, at, took)

    def _detect(self, index: int, at: int, plan: Plan) -> list[Row]:
        self._timed.use(plan, index)
        took = timed_call(self._timed.detect, self._timed.device)
        return self._rows(INFERENCE, plan, index, at, took)

    def _run_part(self, index: int, at: int, part: Part) -> list[Row]:
        self._timed.use(part.plan, index)
        took = timed_call(part.run, self._timed.device)
        primary, _ = self._rows(PART, part.plan, index, at, took)
        return [replace(primary, site=part.site)]

    def _rows(self, metric: str, plan: Plan, index: int, at: int, took: Timed) -> list[Row]:
        shared = replace(
            self._common, plan=str(plan), unit="ms", step=index, draw=at, time=time.time(), metric=metric
        )
        return [
            replace(shared, value=took.primary_ms),
            replace(shared, metric=metric + WALL, value=took.second_ms),
        ]


def draw_order(digest: str, index: int, kind: str, size: int) -> list[int]:
    """Draw the order of a round's visits; the same arguments give the same order.

    Args:
        digest: of the study's recipe.
        index: of the round.
        kind: metric of the visits: training, inference and parts have orders of their own.
        size: number of visits.
    """
    seed = hashlib.sha256(f"{digest} {kind} {index}".encode()).digest()
    return [int(i) for i in np.random.default_rng(list(seed)).permutation(size)]


def refuse_other_rows(folder: Path, common: Row) -> list[Row]:
    """Return the rows of the complete rounds of a folder; a round that was cut short is removed.

    Args:
        folder: of the rows; need not exist.
        common: what the next rows will have in common.

    Raises:
        TrialError: the rows were measured for another study, or on another device, by another commit or
            other versions.
    """
    path = folder / "rows.jsonl"
    if not path.exists():
        return []
    cut_partial_line(path)
    rows = read_rows(path)
    for field in ALIKE:
        others = sorted({str(getattr(row, field)) for row in rows} - {str(getattr(common, field))})
        if others:
            raise TrialError(
                f"{path}: its times were measured with {field} {others[0] or 'none'}, and now it is "
                f"{getattr(common, field) or 'none'}; times of both do not mix, so start anew with --again"
            )
    sizes = Counter(row.step for row in rows)
    complete = [row for row in rows if sizes[row.step] == sizes[0]]
    if len(complete) < len(rows):
        path.unlink()
        if complete:
            append_rows(path, complete)
    return complete
