"""The id of a trial's MLflow run, kept in the trial's folder."""

from pathlib import Path

RUN_ID = "mlflow_run_id"
"""File of a trial that holds the id."""


def read_run_id(trial_folder: Path) -> str:
    """Return the id of the run that a trial was sent to last; empty if it was sent to none."""
    try:
        return (trial_folder / RUN_ID).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def write_run_id(trial_folder: Path, run_id: str) -> None:
    """Keep the id of a trial's run."""
    fresh = trial_folder / f".{RUN_ID}"
    fresh.write_text(run_id + "\n", encoding="utf-8")
    fresh.replace(trial_folder / RUN_ID)
