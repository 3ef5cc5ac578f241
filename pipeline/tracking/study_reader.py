"""The trials of a study folder as MLflow gets them, and the states of trials and study.

Trials are sent while they run, every half a minute. So only what is new in a file is read.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.json_files import JsonError, check_fields, read_json
from pipeline.metrics.rows import Row, read_rows_from
from pipeline.storage.files import atomic_write
from pipeline.storage.trial_status import TrialState, read_status

MLFLOW_STATES = {TrialState.COMPLETE: "FINISHED", TrialState.FAILED: "FAILED"}
"""Our states -> MLflow's; a run is ``RUNNING`` in the others."""

ROWS, END = "rows.jsonl", "study_end.json"
TAIL = 2**16
"""Bytes at the end of a rows file that hold its last line."""


@dataclass
class StoredTrial:
    """A trial on disk, and how much of it MLflow has.

    Attributes:
        folder: ``<study>/trials/<trial>``.
        first: its first row.
        settings: ``settings.json`` of the trial; empty if there is none.
        sent: bytes of its rows file that MLflow has.
        newly_sent: rows that it did not have before.
    """

    folder: Path
    first: Row
    settings: dict[str, Any]
    sent: int = 0
    newly_sent: int = 0

    @property
    def identity(self) -> tuple[str, str]:
        """Name and time of the first row: a study that is deleted and run again gets new runs."""
        return self.folder.name, f"{self.first.time:.6f}"

    @property
    def state(self) -> str:
        """How the trial ended, in MLflow's words: ``FINISHED``, ``FAILED`` or ``RUNNING``."""
        return trial_state(self.folder)

    @property
    def end(self) -> float:
        """Unix time of the last row, seconds."""
        path = self.folder / ROWS
        start = max(path.stat().st_size - TAIL, 0)
        with path.open("rb") as file:
            file.seek(start)
            tail = file.read()
        last = tail.rfind(b"\n", 0, tail.rfind(b"\n")) + 1
        (row, _) = read_rows_from(path, start + last, most=1)[0]
        return row.time

    def begin_at(self, sent: int) -> None:
        """Note how many bytes were sent."""
        self.sent = end_of_line(self.folder / ROWS, sent)

    def unsent_rows(self) -> list[tuple[Row, int]]:
        """Return the complete rows that were not sent, each with the byte after its line.

        Raises:
            RowsError: the file is broken.
        """
        return read_rows_from(self.folder / ROWS, self.sent)

    def count_unsent(self) -> int:
        """Return the number of complete rows that were not sent."""
        with (self.folder / ROWS).open("rb") as file:
            file.seek(self.sent)
            return sum(part.count(b"\n") for part in iter(lambda: file.read(2**20), b""))


def end_of_line(path: Path, position: int) -> int:
    """Return a byte of a file if a line ends right before it; else 0, where a reader may begin, too."""
    if not 0 < position <= path.stat().st_size:
        return 0
    with path.open("rb") as file:
        file.seek(position - 1)
        return position if file.read(1) == b"\n" else 0


def stored_trials(study_folder: Path, names: Collection[str] | None = None) -> list[StoredTrial]:
    """Find the trials of a study that have rows, in the order of their names.

    Args:
        study_folder: the study.
        names: trials to look at, and at no file of any other; None means all.

    Raises:
        RowsError: the first line of a rows file is broken.
    """
    paths = sorted(study_folder.glob(f"trials/*/{ROWS}"))
    trials = []
    for path in paths if names is None else [path for path in paths if path.parent.name in names]:
        if first := read_rows_from(path, 0, most=1):
            settings = path.parent / "settings.json"
            plain = read_json(settings, dict) if settings.exists() else {}
            trials.append(StoredTrial(path.parent, first[0][0], plain))
    return trials


def trial_state(folder: Path) -> str:
    """Return the state of a trial in MLflow's words: ``FINISHED``, ``FAILED`` or ``RUNNING``."""
    return MLFLOW_STATES.get(read_status(folder).state, "RUNNING")


@dataclass(frozen=True)
class StudyEnd:
    """How the last run of a study ended; the file is there from its end to the start of the next run.

    Attributes:
        state: in MLflow's words: ``FINISHED``, ``FAILED``, or ``KILLED`` if it was interrupted.
        no_verdict: why there is no verdict, a sentence; empty if there is one.
    """

    state: str
    no_verdict: str = ""


def read_end(study_folder: Path) -> StudyEnd | None:
    """Return how the last run of a study ended; None while it runs, and if it was killed.

    Raises:
        JsonError: the file holds something else.
    """
    try:
        plain = read_json(study_folder / END, dict)
    except FileNotFoundError:
        return None
    check_fields(StudyEnd, plain, str(study_folder / END))
    return StudyEnd(**plain)


def write_end(study_folder: Path, end: StudyEnd | None) -> None:
    """Write how a run of a study ended; None when the next one begins."""
    if end is None:
        (study_folder / END).unlink(missing_ok=True)
    else:
        atomic_write(study_folder / END, asdict(end))


def study_state(study_folder: Path) -> str:
    """Return ``FINISHED``, ``FAILED`` or ``KILLED`` as the study's last run ended.

    If it left no word: ``FINISHED`` when all trials that ``study.json`` names are finished, else ``RUNNING``.
    A sequential study is finished when ``interim_analyses.json`` has an end: most of its trials need not run.
    """
    if (end := read_end(study_folder)) is not None:
        return end.state
    waves = study_folder / "interim_analyses.json"
    if waves.exists():
        return "FINISHED" if "ended" in read_json(waves, dict) else "RUNNING"
    path = study_folder / "study.json"
    named = read_json(path, dict).get("trials", []) if path.exists() else []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise JsonError("its trials are no list of names", str(path))
    names = named or [rows.parent.name for rows in study_folder.glob(f"trials/*/{ROWS}")]
    states = {trial_state(study_folder / "trials" / name) for name in names}
    return "FINISHED" if states == {"FINISHED"} else "RUNNING"
