"""Writes an object database: every box of a source with its points and its largest picture."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.augmentation.object_database import schema
from pipeline.data.augmentation.transforms import image_rectangles
from pipeline.data.boxes import points_inside
from pipeline.data.sample import DataError, Sample
from pipeline.data.source import Source

CROP_PX = 10
"""A picture must have more pixels than this in width and in height (CMT)."""


def write_database(source: Source, out: Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Write all boxes of a source as an object database.

    Args:
        source: frames; points of their sweeps are included.
        out: folder, made if missing; must not hold a database yet.
        progress: called with the number of finished frames and the number of all frames.

    Returns:
        The number of objects.

    Raises:
        DataError: ``out`` holds a database or cannot be written, or a frame cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = out / "objects.parquet"
    if index.exists():
        raise DataError(f"{index}: an object database is there already; remove it or choose another folder")
    rows: list[dict[str, Any]] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "objects.bin").open("wb") as file:
            for number in range(len(source)):
                rows += [_write(file, made) for made in _objects(source[number])]
                if progress:
                    progress(number + 1, len(source))
        partial = out / ".objects.parquet.part"
        pq.write_table(pa.Table.from_pylist(rows, schema()), partial)
        partial.replace(index)
    except OSError as problem:
        raise DataError(f"{out}: cannot be written ({problem}); free space or choose another") from problem
    return len(rows)


@dataclass(frozen=True)
class _Object:
    """One object; ``crop`` is a PNG file, or empty."""

    token: str
    label: int
    box: NDArray[np.float32]
    points: NDArray[np.float32]
    crop: bytes


def _write(file: Any, made: _Object) -> dict[str, Any]:
    """Append points and picture to ``objects.bin``, and return the object's row of the index."""
    points = made.points.astype("<f4").tobytes()
    start = file.tell()
    file.write(points + made.crop)
    return {
        "token": made.token,
        "label": made.label,
        "box": made.box,
        "points_at": start,
        "num_points": len(made.points),
        "crop_at": start + len(points),
        "crop_bytes": len(made.crop),
    }


def _objects(sample: Sample) -> list[_Object]:
    """Return the objects of a frame."""
    rectangles = image_rectangles(sample.boxes, sample.lidar2img, sample.images.shape[1:3])
    objects = []
    for index, (box, label) in enumerate(zip(sample.boxes, sample.labels, strict=True)):
        points = sample.points[points_inside(sample.points, box)].copy()
        points[:, :3] -= box[:3]
        crop = _best_crop(sample, rectangles[:, index])
        objects.append(_Object(sample.token, int(label), box, points, crop))
    return objects


def _best_crop(sample: Sample, rectangles: NDArray[np.int64]) -> bytes:
    """Return the largest picture of an object as PNG; empty if it is too small in all cameras."""
    sides = rectangles[:, 2:] - rectangles[:, :2]
    area = np.where((sides > CROP_PX).all(axis=1), sides.prod(axis=1), 0)
    view = int(area.argmax())
    if not area[view]:
        return b""
    left, top, right, bottom = rectangles[view]
    done, png = cv2.imencode(".png", sample.images[view, top:bottom, left:right])
    if not done:
        raise DataError(f"frame {sample.token}: OpenCV cannot encode PNG")
    return png.tobytes()
