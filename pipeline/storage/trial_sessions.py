"""The sessions of a trial in its ``status.json``: when one begins, how it ends, and which GPUs it had."""

import time
from collections.abc import Sequence
from contextlib import suppress
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
    times = [0.0]
    for sign in (trial / "rows.jsonl", *trial.glob("checkpoints/step_*")):
        with suppress(FileNotFoundError):  # a worker may have just removed an old checkpoint
            times.append(sign.stat().st_mtime)
    return max(times)


def reopen(trial: Path) -> None:
    """Let a trial that has ended count as not ended: it is to run again."""
    update_status(trial, _running)


def begin_session(trial: Path, gpus: float, trials: int = 1) -> None:
    """Note that a trial starts, or is resumed. A session that was killed ends with its last sign of life.

    Args:
        trial: its folder; made if missing.
        gpus: GPUs, or parts of one, that its workers have; 0 on a CPU.
        trials: of the cohort, itself included; each has an equal part of the workers.
    """
    trial.mkdir(parents=True, exist_ok=True)
    sign = last_sign_of_life(trial)

    def begun(status: TrialStatus) -> TrialStatus:
        earlier = tuple(_closed(session, sign) for session in status.sessions)
        session = TrialSession(time.time(), gpus / trials, share=1 / trials)
        return replace(_running(status), sessions=(*earlier, session))

    update_status(trial, begun)


def end_session(trial: Path, error: str = "", details: str = "", cohort: Sequence[Path] = ()) -> None:
    """Mark a trial as ended, well or not.

    Args:
        trial: its folder; made if missing.
        error: why it failed, one sentence; empty if it is complete.
        details: traceback.
        cohort: folders of the trials that shared its workers, itself included. Whenever one of them ends, the
            others share what it had; so the hours of all add up to those of the cohort.
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
    """Return an open session with the mean part that it had, if other trials of its cohort ended before.

    Args:
        session: its ``gpus`` and its ``share`` are an equal part of the cohort's.
        ends: when the other trials of the cohort ended, Unix time; infinity if they have not.
        now: its end, Unix time.
    """
    others = [end for end in ends if end > session.start]
    if session.end is not None or not others or now <= session.start:
        return session
    trials, parts, since = len(others) + 1, 0.0, session.start  # equal parts, times seconds
    for left, end in enumerate(sorted(others)):
        until = min(end, now)
        parts += trials / (trials - left) * (until - since)
        since = until
    mean = (parts + trials * (now - since)) / (now - session.start)
    return replace(session, gpus=session.gpus * mean, share=session.share * mean)


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
