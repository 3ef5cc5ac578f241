"""Files that several processes share: written whole or not at all, and locked.

All locks of a trial or a study are in its folder ``.locks``. They are advisory (``flock``) and end with
their process at the latest; the lock files themselves stay.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import TrialError

LOCKS = ".locks"
"""Folder of a trial or a study that holds its lock files; copies leave out what begins with a dot."""

WRITER_TIMEOUT_S = 120.0
"""How long a trial waits for its last writer. A worker whose Ray has died ends within seconds."""

POLL_S = 0.2
"""Time between two attempts to get a lock that another process holds."""


class FileError(ValueError):
    """A path that cannot be written as a file."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give the path of a file to write, which then replaces ``path`` in one step; on an error ``path`` stays.

    Args:
        path: the file; its folder must exist.

    Raises:
        FileError: there is something else than a file, such as /dev/null, which must not be replaced.
    """
    if path.exists() and not path.is_file():
        raise FileError(
            f"{path}: is {'a folder' if path.is_dir() else 'a device or a pipe'}, expected a file"
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_file(path: Path, fsync: bool = False) -> Iterator[BinaryIO]:
    """Open a file to write, which then replaces ``path`` in one step; on an error ``path`` stays.

    Args:
        path: the file; its folder must exist.
        fsync: flush the content to disk before it replaces the old one, so that it survives a power cut.
    """
    with atomic_path(path) as partial, partial.open("wb") as file:
        yield file
        file.flush()
        if fsync:
            os.fsync(file.fileno())


def atomic_write(path: Path, content: str | bytes | Mapping[str, Any], fsync: bool = False) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, never a part.

    Args:
        path: the file; its folder must exist.
        content: text, bytes, or an object that is written as JSON.
        fsync: flush it to disk.
    """
    if isinstance(content, Mapping):
        content = json.dumps(content, indent=2) + "\n"
    with atomic_file(path, fsync) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def file_lock(path: Path, timeout_s: float | None = None) -> Iterator[None]:
    """Hold an exclusive lock.

    Args:
        path: the lock file; made, with its folder, if missing.
        timeout_s: how long to wait while another process holds it; None waits without end, 0 not at all.

    Raises:
        BlockingIOError: another process held it all the time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with open(path, "w", opener=_lock_file) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if deadline is None else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                time.sleep(POLL_S)
        yield


def _lock_file(path: str, _: int) -> int:
    """Open a lock file without emptying it, and no link: a folder may come from anybody."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


@contextmanager
def exclusive_writer(folder: Path, timeout_s: float = WRITER_TIMEOUT_S) -> Iterator[None]:
    """Be the only process that writes into a trial's folder.

    When a study is killed, its workers live on for some seconds. The worker that resumes the trial waits
    for them: two writers would spoil rows and checkpoints.

    Args:
        folder: the trial's; made if missing.
        timeout_s: how long to wait for another writer.

    Raises:
        TrialError: another one is still there.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(writer_lock(folder), timeout_s))
        except BlockingIOError:
            raise TrialError(
                f"{folder}: another process has been running this trial for {timeout_s:.0f} s; "
                f"end it, or wait for it"
            ) from None
        yield


def writer_lock(folder: Path) -> Path:
    """Return the lock file of a trial's writer; it exists where a worker of the trial has run."""
    return folder / LOCKS / "writer"


def cut_partial_line(path: Path) -> None:
    """Remove a last line that a crash cut short; appending to it would spoil the next line too."""
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
