"""Temporary folders that do not outlive their process, even one that was killed.

Each folder holds a lock for as long as its owner lives; whoever makes the next one removes those
whose lock is free.
"""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "biaswise-"
LOCK = ".lock"

PLACE = Path("/tmp")
"""Not TMPDIR: Ray's sockets lie in here, and the path of a socket is at most 107 bytes long."""


@contextmanager
def temporary_folder(purpose: str, place: Path = PLACE) -> Iterator[Path]:
    """Make a folder, remove it afterwards, and before that those of owners that died.

    Args:
        purpose: short word in the folder's name.
        place: where to make it.

    Yields:
        The folder.
    """
    _sweep(place)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-", dir=place))
    try:
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # Ray's last words may still be written


def _sweep(place: Path) -> None:
    for path in place.glob(f"{PREFIX}*/{LOCK}"):
        try:
            with path.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)
        except OSError:  # somebody lives there, or it is another user's
            continue
