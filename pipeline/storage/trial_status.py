"""``status.json`` of a trial: its state, its sessions, why it failed, the digest of its rows, its MLflow run.

The file is written in one step, flushed to disk, under a lock: the process that runs the trial and the one
that sends it to MLflow both change it. A trial that was killed is left ``RUNNING``, and is resumed.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from pipeline.errors import written_by_old_version
from pipeline.json_files import JsonError, check_fields, read_bytes, read_json
from pipeline.storage.files import LOCKS, atomic_write, file_lock

FILE = "status.json"

_OLD_FILES = ("BEGUN.json", "DONE.json", "FAILED.json", "diary.jsonl")
"""Files of a trial that version 0.1.0 wrote, and this version does not."""


class StatusError(ValueError):
    """A trial's status that cannot be read; the message is one sentence."""


class TrialState(StrEnum):
    """How far a trial is. One that was stopped early is complete; its row ``stopped_at_step`` says so."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"

    @property
    def has_ended(self) -> bool:
        """Whether the trial is complete or has failed."""
        return self in (TrialState.COMPLETE, TrialState.FAILED)


@dataclass(frozen=True)
class RowsDigest:
    """What a rows file held when its trial ended.

    Attributes:
        num_bytes: size of its complete lines.
        sha256: of those bytes, hexadecimal.
    """

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class TrialSession:
    """One attempt to run a trial, or to go on with it.

    Attributes:
        start: Unix time, seconds.
        gpus: GPUs, or parts of one, that it had; 0 on a CPU.
        end: Unix time, seconds; None while it runs, and after it was killed.
        share: part of its workers' time that was its own; below 1 in a cohort.
    """

    start: float
    gpus: float
    end: float | None = None
    share: float = 1.0

    def hours(self, now: float) -> float:
        """Return the hours it took by the clock, to ``now`` (Unix time) if it has no end."""
        return max((now if self.end is None else self.end) - self.start, 0.0) / 3600


@dataclass(frozen=True)
class TrialStatus:
    """What ``status.json`` says.

    Attributes:
        state: how far the trial is.
        sessions: its sessions, oldest first.
        error: why it failed, one sentence; empty if it did not.
        details: traceback of the failure.
        rows: digest of its rows when it ended; None before.
        mlflow_run_id: its run in MLflow; empty if it has none yet.
    """

    state: TrialState = TrialState.PENDING
    sessions: tuple[TrialSession, ...] = ()
    error: str = ""
    details: str = ""
    rows: RowsDigest | None = None
    mlflow_run_id: str = ""


def read_status(trial: Path) -> TrialStatus:
    """Read the status of a trial's folder.

    A folder without the file is ``RUNNING`` if it holds rows or checkpoints, else ``PENDING``.

    Raises:
        StatusError: the file cannot be read, or the folder is that of an earlier version.
    """
    path = trial / FILE
    try:
        plain = read_json(path, dict)
        check_fields(TrialStatus, plain, but=("state",))
        rows = plain.get("rows")
        return TrialStatus(
            TrialState(plain["state"]),
            tuple(TrialSession(**session) for session in plain.get("sessions", ())),
            plain.get("error", ""),
            plain.get("details", ""),
            None if rows is None else RowsDigest(**rows),
            plain.get("mlflow_run_id", ""),
        )
    except FileNotFoundError:
        if any((trial / name).exists() for name in _OLD_FILES):
            raise StatusError(written_by_old_version(str(trial))) from None
        begun = (trial / "rows.jsonl").exists() or any(trial.glob("checkpoints/step_*"))
        return TrialStatus(TrialState.RUNNING if begun else TrialState.PENDING)
    except (ValueError, KeyError) as error:
        reason = error.reason if isinstance(error, JsonError) else f"state: {error}"
        raise StatusError(
            f"{path}: cannot be read as the status of a trial ({reason}); delete it to run the trial again"
        ) from error


def update_status(trial: Path, change: Callable[[TrialStatus], TrialStatus]) -> TrialStatus:
    """Change the status of a trial while nobody else does; return the new one.

    Args:
        trial: its folder; must exist.
        change: from the status as it is to the status as it shall be.

    Raises:
        StatusError: see ``read_status``.
    """
    with file_lock(trial / LOCKS / "status"):
        status = change(read_status(trial))
        atomic_write(trial / FILE, asdict(status), fsync=True)
    return status


def set_mlflow_run_id(trial: Path, run_id: str) -> None:
    """Write down which run of MLflow a trial is; empty if it has none any more.

    Raises:
        StatusError: see ``read_status``.
    """
    update_status(trial, lambda status: replace(status, mlflow_run_id=run_id))


def rows_digest(path: Path) -> RowsDigest:
    """Return the digest of a rows file's complete lines; of no bytes if there is no such file."""
    data = _read(path)
    data = data[: data.rfind(b"\n") + 1]
    return RowsDigest(len(data), hashlib.sha256(data).hexdigest())


MAX_ROWS_BYTES = 2**30
"""Largest rows file that is read."""


def _read(path: Path) -> bytes:
    """Return the bytes of a rows file; none if there is no such file."""
    return read_bytes(path, MAX_ROWS_BYTES) if path.exists() else b""


def is_unchanged(path: Path, digest: RowsDigest, grown: bool = False) -> bool:
    """Return whether a rows file is what it was when its digest was taken.

    Args:
        path: the rows file.
        digest: taken at the end of the trial.
        grown: accept further rows at the end of the file, of a trial that has been resumed since.
    """
    data = _read(path)
    if not grown and len(data) != digest.num_bytes:
        return False
    return hashlib.sha256(data[: digest.num_bytes]).hexdigest() == digest.sha256
