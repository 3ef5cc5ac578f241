"""Checks that file names in tables, info files and databases stay inside their dataset.

``samples``, ``sweeps`` and ``maps`` may be links, because people keep them on another disk. A link below them
must not lead out of its folder.
"""

from functools import lru_cache
from pathlib import Path, PurePosixPath

from pipeline.data.sample import DataError


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
            f"{where}: names the file {str(name)!r}; expected a path inside {root} without '..' and without "
            "a leading '/'; the dataset is damaged or not to be trusted"
        )
    path = root / pure
    _admit(root, path.parent)
    return path


@lru_cache(maxsize=4096)  # a dataset has about twelve folders and a hundred thousand files
def _admit(root: Path, folder: Path) -> None:
    refuse_outside(root, folder)


def refuse_outside(root: Path, path: Path) -> None:
    """Raise DataError if a path, links resolved, is neither in the dataset nor in its own top folder."""
    real = path.resolve()
    places = (root, *(root / part for part in path.relative_to(root).parts[:1]))
    if not any(real.is_relative_to(place.resolve()) for place in places):
        raise DataError(
            f"{path}: is a link to {real}, outside the dataset {root}; copy it in, or make the whole folder "
            "`samples` or `sweeps` a link"
        )
