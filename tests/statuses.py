"""Statuses of trials that tests write down: of trials that never ran."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.storage.trial_status import TrialState, update_status


def write_status(trial: Path, state: TrialState = TrialState.COMPLETE, **fields: Any) -> None:
    """Set the state of a trial, and other fields of its status; its folder is made if missing."""
    trial.mkdir(parents=True, exist_ok=True)
    update_status(trial, lambda status: replace(status, state=state, **fields))
