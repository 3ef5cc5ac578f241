"""Reads an info file of mmdet3d, whichever format it has."""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.formats.file_source import FileSource
from pipeline.data.formats.frame_record import FrameRecord, all_sound
from pipeline.data.formats.infos.parts import FORMATS, Content
from pipeline.data.formats.infos.version_1_0 import read_1_0
from pipeline.data.formats.infos.version_1_1 import read_1_1
from pipeline.data.safe_pickle import MAKE, unpickle
from pipeline.data.sample import DataError
from pipeline.data.source import READ_ALL, Reading

BROKEN = (KeyError, TypeError, IndexError, ValueError, AttributeError, OverflowError, np.linalg.LinAlgError)
"""Errors of a content that has other keys or types than an info file."""

_LOG = logging.getLogger(__name__)


class InfoSource(FileSource):
    """The frames of an info file as samples.

    Args:
        path: the ``.pkl`` file. Bare file names in it are in ``root/samples/<channel>`` and
            ``root/sweeps/<channel>`` if ``root`` has such folders, else in ``root``.
        root: folder of the files; None: the folder of ``path``.
        reading: what is read of a frame.

    Raises:
        DataError: not an info file, another format, a forbidden object, or a value that cannot be used.
    """

    def __init__(self, path: Path, root: Path | None = None, reading: Reading = READ_ALL) -> None:
        super().__init__(read_infos(path, root or path.parent), reading)


def read_infos(path: Path, root: Path) -> list[FrameRecord]:
    """Read an info file. Boxes of classes outside the ten, and ignored ones (label -1), are dropped.

    Names of classes outside the ten are logged, with the number of boxes that are dropped.
    """
    return all_sound(read_each_info(path, root), str(path))


def read_each_info(path: Path, root: Path) -> Iterator[FrameRecord | DataError]:
    """Yield every frame of an info file, or what is wrong with it; DataError if the file is none."""
    content = unpickle(path)
    frames = _frames(content, path)
    others: Counter[str] = Counter()
    read = read_1_0 if "infos" in content else read_1_1
    try:
        made = read(Content(content, path, root, others))
    except DataError:
        raise
    except BROKEN as error:
        raise _no_infos(path, error) from error
    for frame in frames:
        try:
            yield made(frame)
        except DataError as problem:
            yield DataError(f"{path}: {problem}")
        except BROKEN as error:
            yield _no_infos(path, error)
    if others:
        named = ", ".join(f"{name} {count}" for name, count in sorted(others.items()))
        _LOG.warning("%s: boxes of classes outside the ten are left out: %s", path.name, named)


def _frames(content: Any, path: Path) -> list[Any]:
    frames = content.get("infos", content.get("data_list", []))
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise _no_infos(path, KeyError("data_list"))
    if not frames and ("infos" in content or "data_list" in content):
        raise DataError(f"{path}: holds no frame; {MAKE}")
    return frames


def _no_infos(path: Path, error: Exception) -> DataError:
    told = f"{type(error).__name__}: {str(error)[:200]}"
    return DataError(f"{path}: not an mmdet3d info file of version {' or '.join(FORMATS)} ({told}); {MAKE}")
