"""Checks of the files that a dataset names: they stay inside the dataset, and are files.

``samples``, ``sweeps`` and ``maps`` may be links, because people keep them on another disk. No other link may
lead out of the dataset, and what these three hold stays below their target.
"""

import errno
import os
import stat
from functools import lru_cache
from pathlib import Path, PurePosixPath

from pipeline.data.sample import DataError

MAX_BYTES = 2**28
"""Largest image or point cloud that is read; nuScenes' have 1 MB at most."""

LINKED = ("samples", "sweeps", "maps")
"""Folders of a dataset that may be links to another disk."""


def inside(root: Path, name: str, where: str) -> Path:
    """Return the path of a file that a dataset names. The file is not opened and may be a link.

    Args:
        root: the dataset.
        name: name in the dataset, relative to ``root``.
        where: the file or table that names it, for the error message.

    Raises:
        DataError: the name is absolute, contains '..', or its folder is a link out of the dataset.
    """
    pure = PurePosixPath(str(name))
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in str(name):
        raise DataError(
            f"{where}: names the file {str(name)[:200]!r}; expected a path inside {root} without '..' and "
            "without a leading '/'; the dataset is damaged or not to be trusted"
        )
    path = root / pure
    _admit(root, path.parent)
    return path


@lru_cache(maxsize=4096)  # a dataset has about twelve folders and a hundred thousand files
def _admit(root: Path, folder: Path) -> None:
    refuse_outside(root, folder)


def refuse_outside(root: Path, path: Path) -> None:
    """Raise DataError if a path, links resolved, is not in the dataset or its folder of ``LINKED``."""
    places = (root, *(root / part for part in path.relative_to(root).parts[:1] if part in LINKED))
    try:
        real = path.resolve()
        within = any(real.is_relative_to(place.resolve()) for place in places)
    except (OSError, RuntimeError) as problem:  # a loop of links is a RuntimeError
        raise DataError(f"{str(path)[:200]}: cannot be followed ({problem}); restore the file") from problem
    if not within:
        raise DataError(
            f"{path}: is a link to {real}, outside the dataset {root}; copy it in, or make the whole folder "
            "`samples` or `sweeps` a link"
        )


def read_bytes(path: Path, root: Path | None = None, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of a file.

    Args:
        path: the file.
        root: the dataset of the file. If the file is a link, it must not lead out of the dataset.
        max_bytes: largest file that is read.

    Raises:
        DataError: the file cannot be read, leads out of the dataset, is too large, or is no regular file (a
            named pipe or a device may never end).
    """
    try:
        with open(path, "rb", opener=_no_link if root is not None else _at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise DataError(f"{path}: is no regular file (a pipe or a device); restore the file")
            if found.st_size > max_bytes:
                raise DataError(f"{path}: has {found.st_size} bytes, expected {max_bytes} at most")
            return file.read()
    except OSError as problem:
        if problem.errno == errno.ELOOP and root is not None:  # the file is a link
            refuse_outside(root, path)
            return read_bytes(path.resolve(), None, max_bytes)
        raise DataError(
            f"{str(path)[:200]}: cannot be read ({problem.strerror}); the dataset is incomplete"
        ) from problem


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for a writer, which a named pipe may never have."""
    return os.open(path, flags | os.O_NONBLOCK)


def _no_link(path: str, flags: int) -> int:
    return _at_once(path, flags | os.O_NOFOLLOW)
