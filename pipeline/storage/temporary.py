"""Temporary folders that do not outlive their process, even one that was killed.

Each folder holds a lock for as long as its owner lives; whoever makes the next one removes those
whose lock is free.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.storage.files import file_lock

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
        with file_lock(folder / LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # Ray may still be writing its last log lines


def _sweep(place: Path) -> None:
    for path in place.glob(f"{PREFIX}*/{LOCK}"):
        try:
            with file_lock(path, timeout_s=0.0):
                shutil.rmtree(path.parent, ignore_errors=True)
        except OSError:  # its owner is alive, or it is another user's
            continue
