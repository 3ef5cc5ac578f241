"""Hours and GPU hours of trials, by their sessions, or by their rows where they have no status."""

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.metrics.rows import Row
from pipeline.storage.trial_sessions import last_sign_of_life
from pipeline.storage.trial_status import StatusError, read_status

LONGEST_PAUSE_S = 1800.0
"""A trial that is silent for longer did not run: the longest silence of a running one is its evaluation."""


@dataclass(frozen=True)
class Used:
    """What one trial used, all its sessions together.

    Attributes:
        hours: by the clock.
        gpu_hours: hours times GPUs, or parts of one; 0 on a CPU.
    """

    hours: float
    gpu_hours: float


def used_by(trial: Path) -> Used:
    """Return what the sessions of a trial took; one that was killed counts up to its last sign of life.

    Args:
        trial: its folder.

    Raises:
        StatusError: its status cannot be read.
    """
    sessions = read_status(trial).sessions
    now = last_sign_of_life(trial)
    hours = [session.hours(now) for session in sessions]
    return Used(sum(hours), sum(h * s.gpus for h, s in zip(hours, sessions, strict=True)))


def gpu_hours(study: Path) -> float:
    """Return what all trials of a study folder used so far, failed and unfinished ones included."""
    return sum(used_by(trial).gpu_hours for trial in study.glob("trials/*"))


def used_by_trials(folder: Path, rows: Sequence[Row]) -> dict[str, Used]:
    """Return trial -> what it used.

    Taken from its status. A trial that has not ended, or that has no status, is counted from its first row
    to its last, pauses of over half an hour left out, on one device.

    Args:
        folder: of the study.
        rows: its rows.
    """
    used = _from_rows(rows)
    for trial in sorted(folder.glob("trials/*")):
        with contextlib.suppress(StatusError):  # the report says so elsewhere
            if (status := read_status(trial)).state.has_ended and status.sessions:
                used[trial.name] = used_by(trial)
    return used


def _from_rows(rows: Sequence[Row]) -> dict[str, Used]:
    times: dict[str, list[float]] = defaultdict(list)
    gpus = {row.trial: float(row.device != "cpu") for row in rows}
    for row in rows:
        times[row.trial].append(row.time)
    hours = {
        trial: sum(b - a for a, b in pairwise(sorted(stamps)) if b - a <= LONGEST_PAUSE_S) / 3600
        for trial, stamps in times.items()
    }
    return {trial: Used(spent, spent * gpus[trial]) for trial, spent in hours.items()}
