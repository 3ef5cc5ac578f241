"""Hours and GPU hours of trials, by their sessions, or by their rows where they have no status."""

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.metrics.rows import Row
from pipeline.metrics.run_place import START_TIME
from pipeline.storage.trial_sessions import last_sign_of_life
from pipeline.storage.trial_status import StatusError, TrialSession, read_status

LONGEST_PAUSE_S = 1800.0
"""A trial that is silent for longer did not run: the longest silence of a running one is its evaluation."""

ONCE = ("data_wait_ms", "step_trunk_ms")
"""What a cohort does once in a step, milliseconds."""


@dataclass(frozen=True)
class Used:
    """What one trial used, all its sessions together.

    Attributes:
        hours: of a group of workers by the clock; trials of a cohort share them.
        gpu_hours: hours times GPUs, or parts of one; 0 on a CPU.
        saved: hours of a group of workers that it would have taken more by itself, at least.
    """

    hours: float
    gpu_hours: float
    saved: float = 0.0


def used_by(trial: Path, rows: Sequence[Row] = ()) -> Used:
    """Return what the sessions of a trial took; one that was killed counts up to its last sign of life.

    Args:
        trial: its folder.
        rows: its rows; without them nothing is ``saved``.

    Raises:
        StatusError: its status cannot be read.
    """
    sessions = read_status(trial).sessions
    now = last_sign_of_life(trial)
    hours = [session.hours(now) for session in sessions]
    shared = sum(h * s.share for h, s in zip(hours, sessions, strict=True))
    gpu_hours = sum(h * s.gpus for h, s in zip(hours, sessions, strict=True))
    return Used(shared, gpu_hours, _saved(sessions, rows))


def _saved(sessions: Sequence[TrialSession], rows: Sequence[Row]) -> float:
    """Return the hours that a cohort saved a trial: what it did once for all, less the trial's part of it.

    That is the start of the first session, and reading and trunk of every step. The trunk of detections is
    saved, too, and is not timed by itself; so it was more.
    """
    if not sessions or sessions[-1].share == 1:
        return 0.0
    last = {row.metric: row for row in rows}
    once = sum(last[name].value * last[name].step / 1e3 for name in ONCE if name in last)
    begun = [row.value for row in rows if row.metric == START_TIME]
    once += max(min(begun) - sessions[0].start, 0.0) if begun else 0.0
    return once * (1 - sessions[-1].share) / 3600


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
    used, by_trial = _from_rows(rows), defaultdict(list)
    for row in rows:
        by_trial[row.trial].append(row)
    for trial in sorted(folder.glob("trials/*")):
        with contextlib.suppress(StatusError):  # the report says so elsewhere
            if (status := read_status(trial)).state.has_ended and status.sessions:
                used[trial.name] = used_by(trial, by_trial[trial.name])
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
