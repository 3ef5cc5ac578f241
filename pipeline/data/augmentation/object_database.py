"""Object databases for GT sampling: the boxes of a split with their points and a picture of each.

Our format is a folder. ``objects.bin`` holds points and pictures one after the other; ``objects.parquet``,
which is written last, is the index. Neither is a pickle. The ``*_dbinfos_train.pkl`` of CMT's and mmdet3d's
tools can be read too. It follows junjie18/CMT, tools/data_converter/create_gt_database.py, except for two
errors there: here all corners of a box must be in front of the camera for a picture, and the largest picture
is kept.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.config.settings import CLASSES
from pipeline.data import sensors
from pipeline.data.images import decode_crop
from pipeline.data.safe_paths import inside, read_bytes
from pipeline.data.safe_pickle import unpickle
from pipeline.data.sample import DataError

FORMAT = "1"
"""Version of the format, in the metadata of the Parquet file."""


def schema() -> Any:
    """Return the Arrow schema of ``objects.parquet``."""
    import pyarrow as pa  # imported here, because only our own format needs it

    return pa.schema(
        [
            ("token", pa.string()),
            ("label", pa.int16()),
            ("box", pa.list_(pa.float32(), 9)),
            ("points_at", pa.int64()),
            ("num_points", pa.int32()),
            ("crop_at", pa.int64()),
            ("crop_bytes", pa.int32()),  # 0: there is no picture
        ],
        metadata={"format": FORMAT},
    )


class ObjectDatabase(Protocol):
    """Objects by index. Boxes, labels and counts are in memory; points and pictures are read on demand.

    Attributes:
        boxes: (K, 9) float32, columns as in ``Sample.boxes``.
        labels, num_points: (K,) int64.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    num_points: NDArray[np.int64]

    def points(self, index: int) -> NDArray[np.float32]:
        """Return the points (N, 5) of an object: x, y, z relative to the centre of its box, not rotated."""
        ...

    def crop(self, index: int) -> NDArray[np.uint8] | None:
        """Return the picture (h, w, 3) BGR of an object, or None."""
        ...


def open_database(path: Path, root: Path | None = None) -> ObjectDatabase:
    """Open a folder that ``write_database`` made, or a ``.pkl`` of dbinfos.

    Args:
        path: the folder or file.
        root: folder of the files that a ``.pkl`` names; None: the folder of ``path``.

    Raises:
        DataError: it is neither, is damaged, or holds no object.
    """
    if not path.exists():
        raise DataError(f"{path}: no such object database; `biaswise data objects` makes one")
    database: ObjectDatabase = (
        InfoDatabase(path, root or path.parent) if path.suffix == ".pkl" else FolderDatabase(path)
    )
    if not len(database.labels):
        raise DataError(f"{path}: holds no object of the ten classes")
    return database


class FolderDatabase:
    """The objects of a folder that ``write_database`` made. It can be sent to loader processes."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns_of_format = schema()
        self._bin = folder / "objects.bin"
        index = folder / "objects.parquet"
        try:
            table = pq.read_table(index)
            size = self._bin.stat().st_size
        except (OSError, pa.ArrowException) as problem:
            raise DataError(f"{folder}: no whole object database ({problem}); write it anew") from problem
        if (
            table.schema.remove_metadata() != columns_of_format.remove_metadata()
            or (table.schema.metadata or {}).get(b"format") != FORMAT.encode()
        ):
            raise DataError(f"{index}: not an object database of format {FORMAT}; write it anew")
        if any(table[name].null_count for name in columns_of_format.names):
            raise DataError(f"{index}: has empty fields; write it anew")
        columns = {
            name: table[name].to_numpy() for name in columns_of_format.names if name not in ("token", "box")
        }
        rows = table["box"].combine_chunks().flatten().to_numpy().reshape(-1, 9)
        called = [f"object {number}" for number in range(len(rows))]
        self.boxes: NDArray[np.float32] = sensors.boxes(rows, str(index), called)
        self.labels: NDArray[np.int64] = columns["label"].astype(np.int64)
        if not ((self.labels >= 0) & (self.labels < len(CLASSES))).all():
            raise sensors.wrong(str(index), "label", self.labels.tolist(), f"0 to {len(CLASSES) - 1}")
        self.num_points: NDArray[np.int64] = columns["num_points"].astype(np.int64)
        self._points_at, self._crop_at = columns["points_at"], columns["crop_at"]
        self._crop_bytes = columns["crop_bytes"]
        self._refuse_outside(size)

    def _refuse_outside(self, size: int) -> None:
        """Raise DataError if a place in ``objects.bin`` is not within its bytes."""
        for start, count in ((self._points_at, self.num_points * 20), (self._crop_at, self._crop_bytes)):
            outside = (start < 0) | (count < 0) | (start > size - count)
            if outside.any():
                raise DataError(
                    f"{self._bin}: has {size} bytes, and object {int(outside.argmax())} lies outside them; "
                    "it is cut short, write it anew"
                )

    def points(self, index: int) -> NDArray[np.float32]:
        """See ``ObjectDatabase``."""
        count = int(self.num_points[index])
        data = self._read(int(self._points_at[index]), count * 20)  # five float32
        return sensors.parse_object(data, f"{self._bin}: object {index}", count, sensors.COLUMNS)

    def crop(self, index: int) -> NDArray[np.uint8] | None:
        """See ``ObjectDatabase``."""
        if not self._crop_bytes[index]:
            return None
        data = self._read(int(self._crop_at[index]), int(self._crop_bytes[index]))
        return decode_crop(data, f"{self._bin}: object {index}")

    def _read(self, start: int, count: int) -> bytes:
        with self._bin.open("rb") as file:
            data = os.pread(file.fileno(), count, start)
        if len(data) != count:
            raise DataError(f"{self._bin}: cut short at byte {start + len(data)}; write the database anew")
        return data


class InfoDatabase:
    """The objects of a ``dbinfos`` pickle, in which z is the bottom of a box. The files are in ``root``."""

    def __init__(self, path: Path, root: Path) -> None:
        self._root = root
        content = unpickle(path)
        try:
            infos = [
                (CLASSES.index(name), info) for name in content if name in CLASSES for info in content[name]
            ]
            rows = [_centred(info["box3d_lidar"]) for _, info in infos]
            self._paths = [(str(info["path"]), str(info.get("image_path", ""))) for _, info in infos]
            counts = [info["num_points_in_gt"] for _, info in infos]
            self._columns = [
                sensors.columns(info.get("num_pts_feats"), str(path), "num_pts_feats") for _, info in infos
            ]
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path}: not a dbinfos file of mmdet3d or CMT ({type(error).__name__}: {error}); "
                "`biaswise data objects` makes a database of our own"
            ) from error
        called = [f"object {number} ({CLASSES[label]})" for number, (label, _) in enumerate(infos)]
        self.boxes: NDArray[np.float32] = sensors.boxes(rows, str(path), called)
        self.num_points: NDArray[np.int64] = sensors.point_counts(counts, str(path), "num_points_in_gt")
        self.labels: NDArray[np.int64] = np.array([label for label, _ in infos], np.int64)

    def points(self, index: int) -> NDArray[np.float32]:
        """See ``ObjectDatabase``. In the file z is relative to the bottom of the box."""
        name = self._paths[index][0]
        points = sensors.parse_object(
            self._file(name), str(self._root / name), int(self.num_points[index]), self._columns[index]
        )
        points[:, 2] -= self.boxes[index, 5] / 2
        return points

    def crop(self, index: int) -> NDArray[np.uint8] | None:
        """See ``ObjectDatabase``."""
        name = self._paths[index][1]
        return decode_crop(self._file(name), str(self._root / name)) if name else None

    def _file(self, name: str) -> bytes:
        return read_bytes(inside(self._root, name, "a dbinfos file"), self._root)


def _centred(box: Sequence[float]) -> list[float]:
    """Return a box with z at its centre, from one with z at its bottom, with or without velocity."""
    x, y, z, length, width, height, yaw, *velocity = map(float, box)
    return [x, y, z + height / 2, length, width, height, yaw, *(velocity or (0.0, 0.0))]
