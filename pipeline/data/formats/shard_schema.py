"""Converts a frame to a row of Parquet, and back."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.formats.decoding import assemble, load_points, read_bytes
from pipeline.data.formats.frame_record import FrameRecord
from pipeline.data.formats.shard_manifest import POINTS
from pipeline.data.sample import CAMERAS, DataError


def to_row(record: FrameRecord, points: str) -> dict[str, Any]:
    """Read a frame's files, check that they decode, and return the row."""
    jpegs = [read_bytes(path, record.root) for path in record.image_paths]
    cloud = load_points(record)
    assemble(record, jpegs, cloud)
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
    """Return the record of a row. Its paths name the place in the shards and cannot be opened."""

    def array(key: str, kind: Any, *shape: int) -> NDArray[Any]:
        values = table[key][row].values.to_numpy()
        return np.array(values, kind).reshape(shape)

    token = table["token"][row].as_py()
    return FrameRecord(
        token=token,
        scene=table["scene"][row].as_py(),
        timestamp_us=table["timestamp_us"][row].as_py(),
        image_paths=tuple(Path(name) / token / camera for camera in CAMERAS),
        cam2img=array("cam2img", np.float64, 6, 3, 3),
        lidar2cam=array("lidar2cam", np.float64, 6, 4, 4),
        lidar_path=Path(name) / token / "points",
        sweeps=(),
        lidar2ego=array("lidar2ego", np.float64, 4, 4),
        ego2global=array("ego2global", np.float64, 4, 4),
        boxes=array("boxes", np.float32, -1, 9),
        labels=array("labels", np.int64, -1),
        num_points=array("num_points", np.int64, -1),
    )
