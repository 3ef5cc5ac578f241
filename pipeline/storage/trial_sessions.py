"""The sessions of a trial in its ``status.json``: when one begins, how it ends, and which GPUs it had."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.redaction import redact
from pipeline.storage.trial_status import (
    TrialSession,
    TrialState,
    TrialStatus,
    read_status,
    rows_digest,
    update_status,
)


def last_sign_of_life(trial: Path) -> float:
    """Return when a trial last wrote rows or a checkpoint, Unix time; 0 if it never did."""
    signs = [trial / "rows.jsonl", *trial.glob("checkpoints/step_*")]
    return max((sign.stat().st_mtime for sign in signs if sign.exists()), default=0.0)


def reopen(trial: Path) -> None:
    """Let a trial that has ended count as not ended: it is to run again."""
    update_status(trial, _running)


def begin_session(trial: Path, gpus: float) -> None:
    """Note that a trial starts, or is resumed. A session that was killed ends with its last sign of life.

    Args:
        trial: its folder; made if missing.
        gpus: GPUs, or parts of one, that it has; 0 on a CPU. Of a cohort, an equal part for each trial.
    """
    trial.mkdir(parents=True, exist_ok=True)
    sign = last_sign_of_life(trial)

    def begun(status: TrialStatus) -> TrialStatus:
        earlier = tuple(_closed(session, sign) for session in status.sessions)
        return replace(_running(status), sessions=(*earlier, TrialSession(time.time(), gpus)))

    update_status(trial, begun)


def end_session(trial: Path, error: str = "", details: str = "", cohort: Sequence[Path] = ()) -> None:
    """Mark a trial as ended, well or not.

    Args:
        trial: its folder; made if missing.
        error: why it failed, one sentence; empty if it is complete.
        details: traceback.
        cohort: folders of the trials that shared its GPUs, itself included. Whenever one of them ends, the
            others share what it had; so the GPU hours of all add up to those of the cohort.
    """
    trial.mkdir(parents=True, exist_ok=True)
    digest = rows_digest(trial / "rows.jsonl")
    ends = [_end(other) for other in cohort if other != trial]
    now = time.time()

    def ended(status: TrialStatus) -> TrialStatus:
        return replace(
            status,
            state=TrialState.FAILED if error else TrialState.COMPLETE,
            sessions=tuple(_closed(_shared(session, ends, now), now) for session in status.sessions),
            error=redact(error),
            details=redact(details),
            rows=digest,
        )

    update_status(trial, ended)


def _shared(session: TrialSession, ends: Sequence[float], now: float) -> TrialSession:
    """Return an open session with the mean GPUs that it had, if other trials of its cohort ended before.

    Args:
        session: its ``gpus`` are an equal part of the cohort's.
        ends: when the other trials of the cohort ended, Unix time; infinity if they have not.
        now: its end, Unix time.
    """
    others = [end for end in ends if end > session.start]
    if session.end is not None or not others or now <= session.start:
        return session
    whole, gpu_seconds, since = session.gpus * (len(others) + 1), 0.0, session.start
    for left, end in enumerate(sorted(others)):
        until = min(end, now)
        gpu_seconds += whole / (len(others) + 1 - left) * (until - since)
        since = until
    gpu_seconds += whole * (now - since)
    return replace(session, gpus=gpu_seconds / (now - session.start))


def _end(trial: Path) -> float:
    """Return when the last session of a trial ended, Unix time; infinity if it has not."""
    sessions = read_status(trial).sessions
    end = sessions[-1].end if sessions else None
    return float("inf") if end is None else end


def _running(status: TrialStatus) -> TrialStatus:
    return replace(status, state=TrialState.RUNNING, error="", details="", rows=None)


def _closed(session: TrialSession, end: float) -> TrialSession:
    """Return a session that has an end, not before its start."""
    return session if session.end is not None else replace(session, end=max(end, session.start))
