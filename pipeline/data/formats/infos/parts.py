"""What info files of both formats share: where files are, classes, boxes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.settings import CLASSES
from pipeline.data import sensors
from pipeline.data.formats.frame_record import FrameRecord
from pipeline.data.safe_paths import inside
from pipeline.data.sample import DataError

FORMATS = ("1.0", "1.1")
"""Info versions that can be read. A file of 1.0 has the keys ``infos`` and ``metadata``, and no version."""

LIDAR = "LIDAR_TOP"

MICROSECONDS = 1e6
"""Microseconds in a second."""

ReadFrame = Callable[[Mapping[str, Any]], FrameRecord]


@dataclass(frozen=True)
class Content:
    """An info file that is being read.

    Attributes:
        content: what the pickle holds.
        path: the file.
        root: folder of the dataset.
        others: counts the boxes that are left out, by the name of their class.
    """

    content: Mapping[str, Any]
    path: Path
    root: Path
    others: "Counter[str]"

    def locate(self, name: Any, channel: str, folder: str = "samples") -> Path:
        """Return the path of a file.

        A bare name is in mmdet3d's ``data_prefix`` of its sensor. A longer one may begin with the folder in
        which the converter ran (``./data/nuscenes/samples/...``): what counts begins at ``samples`` or
        ``sweeps``.
        """
        if not isinstance(name, str):
            raise sensors.wrong("an info file", f"a file of {channel}", name, "a file name")
        parts = PurePosixPath(name).parts
        starts = [i for i, part in enumerate(parts[:-1]) if part in ("samples", "sweeps")]
        if starts:
            name = "/".join(parts[starts[-1] :])
        elif len(parts) == 1 and (self.root / folder / channel).is_dir():
            name = f"{folder}/{channel}/{name}"
        return inside(self.root, name, "an info file")


def read_token(info: Mapping[str, Any]) -> str:
    """Return what names a frame: its sample token, or its index."""
    token = info.get("token", info.get("sample_idx"))
    if not isinstance(token, str | int | np.integer) or isinstance(token, bool):
        raise sensors.wrong("a frame", "token", token, "the token of a sample")
    return str(token)[:200]


def refuse_foreign(path: Path, names: Sequence[str]) -> None:
    """Refuse a file that names classes, and none of the ten: all its boxes would be left out."""
    if names and not set(names) & set(CLASSES):
        raise DataError(
            f"{path}: its classes are {sensors.show(list(names))}, and none of them is one of "
            f"{', '.join(CLASSES)}; rename them to what they are"
        )


@dataclass
class Objects:
    """The objects of a frame, as lists that grow.

    Attributes:
        rows: nine numbers, columns of ``Sample.boxes``.
        names: names of the classes.
        lidar: LiDAR points; None where the file does not say.
        radar: radar points; None where the file does not say.
        flags: whether the box counts; None where the file does not say.
    """

    rows: list[Any]
    names: list[str]
    lidar: list[Any]
    radar: list[Any]
    flags: list[Any]

    def columns(self, where: str) -> dict[str, NDArray[Any]]:
        """Return boxes, labels, num_points and valid, as ``FrameRecord`` has them."""
        called = [f"box {index} ({name})" for index, name in enumerate(self.names)]
        lidar = sensors.point_counts([0 if n is None else n for n in self.lidar], where, "num_lidar_pts")
        radar = sensors.point_counts([0 if n is None else n for n in self.radar], where, "num_radar_pts")
        said = np.array([n is not None for n in self.lidar], bool)
        counted = np.where(said, lidar + radar > 0, True)
        flagged = [counted[i] if flag is None else _flag(flag, where) for i, flag in enumerate(self.flags)]
        return {
            "boxes": sensors.boxes(self.rows, where, called),
            "labels": np.array([CLASSES.index(name) for name in self.names], np.int64),
            "num_points": lidar,
            "valid": np.array(flagged, bool),
        }


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool | np.bool_ | int | np.integer) or value not in (0, 1):
        raise sensors.wrong(where, "bbox_3d_isvalid", value, "True or False")
    return bool(value)
