"""The trials of a study folder as MLflow gets them, and the states of trials and study."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.json_files import JsonError, read_json
from pipeline.metrics.rows import Row, read_rows
from pipeline.storage.trial_status import TrialState, read_status

MLFLOW_STATES = {TrialState.COMPLETE: "FINISHED", TrialState.FAILED: "FAILED"}
"""Our states -> MLflow's; a run is ``RUNNING`` in the others."""


@dataclass
class StoredTrial:
    """A trial on disk, and how much of it MLflow has.

    Attributes:
        folder: ``<study>/trials/<trial>``.
        rows: its rows, at least one.
        settings: ``settings.json`` of the trial; empty if there is none.
        sent: rows that MLflow has.
        newly_sent: those of them that it did not have before.
    """

    folder: Path
    rows: list[Row]
    settings: dict[str, Any]
    sent: int = 0
    newly_sent: int = 0

    @property
    def identity(self) -> tuple[str, str]:
        """Name and time of the first row: a study that is deleted and run again gets new runs."""
        return self.folder.name, f"{self.rows[0].time:.6f}"

    @property
    def state(self) -> str:
        """How the trial ended, in MLflow's words: ``FINISHED``, ``FAILED`` or ``RUNNING``."""
        return trial_state(self.folder)


def stored_trials(study_folder: Path, names: Collection[str] | None = None) -> list[StoredTrial]:
    """Read trials of a study that have rows, in the order of their names.

    Args:
        study_folder: the study.
        names: trials to read, and no file of any other; None means all.

    Raises:
        RowsError: a rows file is broken elsewhere than in its last line.
    """
    paths = sorted(study_folder.glob("trials/*/rows.jsonl"))
    trials = []
    for path in paths if names is None else [path for path in paths if path.parent.name in names]:
        settings = path.parent / "settings.json"
        plain = read_json(settings, dict) if settings.exists() else {}
        trials.append(StoredTrial(path.parent, read_rows(path), plain))
    return [trial for trial in trials if trial.rows]


def trial_state(folder: Path) -> str:
    """Return the state of a trial in MLflow's words: ``FINISHED``, ``FAILED`` or ``RUNNING``."""
    return MLFLOW_STATES.get(read_status(folder).state, "RUNNING")


def study_state(study_folder: Path) -> str:
    """Return ``FINISHED`` when all trials that ``study.json`` names are finished, else ``RUNNING``.

    A sequential study is finished when ``interim_analyses.json`` has an end: most of its trials need not run.
    """
    waves = study_folder / "interim_analyses.json"
    if waves.exists():
        return "FINISHED" if "ended" in read_json(waves, dict) else "RUNNING"
    path = study_folder / "study.json"
    named = read_json(path, dict).get("trials", []) if path.exists() else []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise JsonError("its trials are no list of names", str(path))
    names = named or [rows.parent.name for rows in study_folder.glob("trials/*/rows.jsonl")]
    states = {trial_state(study_folder / "trials" / name) for name in names}
    return "FINISHED" if states == {"FINISHED"} else "RUNNING"
