"""Check: what a study that was struck holds, against the same study unbroken."""

import csv
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.recipes.decision_rule import AnalysisError
from experiments.reporting.integrity import refuse_edits
from experiments.storage.study_folder import StudyFolder
from pipeline.metrics.rows import Row, read_rows
from pipeline.metrics.run_place import HOST, SLOT, START_TIME
from pipeline.runtime.event_log import starts_of

TIMES = ("ms", "samples/s", "GiB", "s", "label")
"""Units of what no two runs measure alike."""

ONCE_PER_START = (START_TIME, SLOT, HOST)
"""Metrics of which a trial has a row for every start: one that starts again at the same step has two."""

Key = tuple[str, str, str, str, str, str, int | None, int]


@dataclass(frozen=True)
class Tally:
    """What differs from the unbroken study.

    Attributes:
        lost: rows that it has and the other lacks.
        doubled: rows that are there more than once, or that it does not have.
        changed: rows, no times, whose numbers differ.
        verdicts: sites whose verdicts differ.
        from_start: starts of a trial that went back behind a checkpoint.
        restarts: starts of trials beyond the first.
        edited: which trials' rows are not those they wrote; empty if there are none.
    """

    lost: int
    doubled: int
    changed: int
    verdicts: int
    from_start: int
    restarts: int
    edited: str

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, doubled, changed or run again for nothing."""
        return not (
            self.lost or self.doubled or self.changed or self.verdicts or self.from_start or self.edited
        )


@dataclass(frozen=True)
class Result:
    """What came of one run.

    Attributes:
        fault, seed: which run.
        what: what was done.
        hit: whether it hit anything: a process that lived, memory, room or a file that was needed.
        draws: which draw of the moment this is; those before it hit nothing and lost nothing.
        moment: where the victim was.
        resumes: how often `study resume` was needed.
        seconds_lost: from the fault, through the last restart if there is one, to the victim's next new row;
            None if there was none.
        seconds: whole run.
        load: of the machine at its end, mean of a minute; this run is one to two of it.
        odd: what is wrong beside the tally; empty if nothing is.
    """

    fault: str
    seed: int
    what: str
    hit: bool
    draws: int
    moment: str
    resumes: int
    seconds_lost: float | None
    seconds: float
    load: float
    tally: Tally
    odd: str

    @property
    def well(self) -> bool:
        """Whether the study survived as it should."""
        return self.tally.clean and not self.odd

    def plain(self) -> dict[str, object]:
        """Return one flat line of a table."""
        flat = asdict(self)
        return {**{k: v for k, v in flat.items() if k != "tally"}, **flat["tally"], "well": self.well}


def tally(
    folder: StudyFolder, unbroken: StudyFolder, trials: list[str], checkpoints: dict[str, int], judged: bool
) -> Tally:
    """Compare a study with its unbroken twin.

    Args:
        folder: the study that was struck.
        unbroken: its twin.
        trials: names of the trials to compare.
        checkpoints: trial -> newest checkpoint, in steps, when the fault struck.
        judged: whether verdicts are compared too.
    """
    lost = doubled = changed = 0
    for name in trials:
        mine, twins = _numbers(folder.trial(name)), _numbers(unbroken.trial(name))
        counts = Counter(key for key, _ in mine)
        lost += sum(key not in counts for key, _ in twins if _is_certain(key))
        strange = [key for key in counts.keys() - dict(twins).keys() if _is_certain(key)]
        doubled += sum(count - 1 for count in counts.values()) + len(strange)
        found = dict(mine)
        changed += sum(
            key in found and value is not None and repr(found[key]) != repr(value) for key, value in twins
        )
    return Tally(
        lost,
        doubled,
        changed,
        len(_verdicts(folder).items() ^ _verdicts(unbroken).items()) if judged else 0,
        sum(_went_back(folder.trial(name), step) for name, step in checkpoints.items()),
        sum(max(len(_starts(folder.trial(name))) - 1, 0) for name in trials),
        _edited(folder.path),
    )


def _is_certain(key: Key) -> bool:
    """Tell whether every run has this row; which kernels are the slowest differs from run to run."""
    return key[1] != "kernel_ms"


def _numbers(trial: Path) -> list[tuple[Key, tuple[float, int, int, str] | None]]:
    """Return what a trial measured: what it is, and the number if it is no time."""
    path = trial / "rows.jsonl"
    rows = read_rows(path) if path.exists() else []
    return [(_key(row), _value(row)) for row in rows if row.metric not in ONCE_PER_START]


def _key(row: Row) -> Key:
    return row.trial, row.metric, row.site, row.kernel, row.condition, row.scene, row.draw, row.step


def _value(row: Row) -> tuple[float, int, int, str] | None:
    return None if row.unit in TIMES else (row.value, row.n, row.seed, row.plan)


def _verdicts(folder: StudyFolder) -> dict[str, tuple[str, str]]:
    """Return site and level -> verdict and gain, of the report that the study left."""
    path = folder.path / "verdicts.csv"
    if not path.exists():
        return {"report": ("none", "")}
    with path.open(encoding="utf-8", newline="") as file:
        return {
            f"{line['site']}/{line['treatment']}": (line["verdict"], line["gain"])
            for line in csv.DictReader(file)
        }


def _starts(trial: Path) -> list[int]:
    return [event.step for event in starts_of(trial)]


def _went_back(trial: Path, checkpoint: int) -> int:
    """Count the starts after a checkpoint that did not go on from it, or from a later one."""
    later, seen = 0, 0
    for step in _starts(trial)[1:]:
        seen = max(seen, step)
        later += step < seen or (checkpoint > 0 and step < checkpoint)
    return later


def _edited(study: Path) -> str:
    try:
        refuse_edits(study)
    except AnalysisError as error:
        return str(error)
    return ""
