"""Converts a frame to a row of Parquet, and back."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.settings import CLASSES
from pipeline.data.formats.decoding import assemble, load_images, load_points
from pipeline.data.formats.frame_record import FrameRecord
from pipeline.data.formats.shard_manifest import POINTS
from pipeline.data.images import refuse_gap
from pipeline.data.sample import CAMERAS, DataError
from pipeline.data.sensors import boxes, intrinsic, microseconds, numbers, point_counts, transform, wrong


def to_row(record: FrameRecord, points: str, missing_cameras: str = "refuse") -> dict[str, Any]:
    """Read a frame's files, check that they decode and are whole, and return the row."""
    jpegs = load_images(record, missing_cameras)
    cloud = load_points(record)
    assemble(record, jpegs, cloud)
    for path, jpeg in zip(record.image_paths, jpegs, strict=True):
        if jpeg is not None:
            refuse_gap(jpeg, str(path))
    return {
        "token": record.token,
        "scene": record.scene,
        "timestamp_us": record.timestamp_us,
        "num_boxes": len(record.boxes),
        "num_cloud_points": len(cloud),
        **{f"jpeg_{camera}": jpeg for camera, jpeg in zip(CAMERAS, jpegs, strict=True)},
        "points": _stored(cloud, points, record.token).tobytes(),
        "cam2img": record.cam2img.ravel(),
        "lidar2cam": record.lidar2cam.ravel(),
        "lidar2ego": record.lidar2ego.ravel(),
        "ego2global": record.ego2global.ravel(),
        "boxes": record.boxes.ravel(),
        "labels": record.labels,
        "num_points": record.num_points,
        "valid": record.valid,
    }


def _stored(cloud: NDArray[np.float32], points: str, token: str) -> NDArray[Any]:
    """Return the points in the dtype in which they are stored."""
    with np.errstate(over="ignore"):  # an overflow is checked below
        made = cloud.astype(POINTS[points])
    if not np.isfinite(made).all():
        raise DataError(
            f"frame {token}: holds a {np.abs(cloud).max():.0f}, and float16 ends at 65504; use float32"
        )
    return made


def to_record(table: Any, row: int, name: str) -> FrameRecord:
    """Return the record of a row. Its paths name the place in the shards and cannot be opened.

    Raises:
        DataError: a value that tables and info files may not hold either.
    """
    token = str(table["token"][row].as_py())
    where = f"{name}: frame {token}"

    def values(key: str) -> Any:
        found = table[key][row]
        if not found.is_valid:
            raise wrong(where, key, None, "values")
        return found.values.to_numpy(zero_copy_only=False)

    def matrices(key: str, read: Any, *shape: int) -> NDArray[np.float64]:
        parts = numbers(values(key), where, key, (math.prod(shape),)).reshape(shape)
        return np.array([read(part, where, key) for part in parts])

    labels = values("labels")
    if not all(0 <= label < len(CLASSES) for label in labels):
        raise wrong(where, "labels", labels.tolist(), f"0 to {len(CLASSES) - 1}")
    called = [f"box {index} ({CLASSES[label]})" for index, label in enumerate(labels)]
    rows = values("boxes")
    counts = point_counts(values("num_points").tolist(), where, "num_points")
    valid = values("valid").astype(bool)
    if not len(rows) == 9 * len(labels) == 9 * len(counts) == 9 * len(valid):
        sizes = [len(rows), len(labels), len(counts), len(valid)]
        raise wrong(where, "lengths of boxes, labels, num_points, valid", sizes, "9, 1, 1, 1 for each box")
    return FrameRecord(
        token=token,
        scene=str(table["scene"][row].as_py()),
        timestamp_us=microseconds(table["timestamp_us"][row].as_py(), where, "timestamp_us", 1),
        image_paths=tuple(Path(name) / token / camera for camera in CAMERAS),
        cam2img=matrices("cam2img", intrinsic, 6, 3, 3),
        lidar2cam=matrices("lidar2cam", transform, 6, 4, 4),
        lidar_path=Path(name) / token / "points",
        sweeps=(),
        lidar2ego=matrices("lidar2ego", transform, 1, 4, 4)[0],
        ego2global=matrices("ego2global", transform, 1, 4, 4)[0],
        boxes=boxes(rows.reshape(-1, 9), where, called),
        labels=np.array(labels, np.int64),
        num_points=counts,
        valid=valid,
    )


def to_cloud(table: Any, row: int, dtype: str, where: str) -> NDArray[np.float32]:
    """Return the points (N, 5) float32 of a row; DataError if they are none."""
    stored = table["points"][row]
    size = 5 * np.dtype(dtype).itemsize
    if not stored.is_valid or not len(stored.as_buffer()) or len(stored.as_buffer()) % size:
        raise DataError(f"{where}: its points are no whole number of {size} bytes; write the shards anew")
    cloud = np.frombuffer(stored.as_buffer(), dtype).astype(np.float32).reshape(-1, 5)
    if not np.isfinite(cloud).all():
        raise DataError(f"{where}: holds points that are not finite; write the shards anew")
    return cloud


def to_jpegs(table: Any, row: int) -> list[memoryview | None]:
    """Return the encoded images of a row in the order of ``CAMERAS``; None where the camera was missing."""
    cells = [table[f"jpeg_{camera}"][row] for camera in CAMERAS]
    return [memoryview(cell.as_buffer()).cast("B") if cell.is_valid else None for cell in cells]
