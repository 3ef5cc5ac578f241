"""Bad object databases, and images that claim or hold less than they should."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bad_inputs.of_data import file, read
from tests.bad_inputs.of_sensors import EOI, huge, rows
from tests.bad_inputs.place import Bad, Place, Words

BOX = [0.0, 0.0, 0.0, 4.0, 2.0, 2.0, 0.0]


def cloud(columns: int, lag: float = 0.0) -> bytes:
    """Two points."""
    made = np.ones((2, columns), "<f4")
    made[:, 4:] = lag
    return made.tobytes()


def picture(kind: str = ".png") -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    return cv2.imencode(kind, noise)[1].tobytes()


def dbinfos(
    points: bytes = cloud(5), crop: bytes = picture(), **info: Any
) -> Callable[[Place], Callable[[], Any]]:
    """A dbinfos file with one car, of which points and picture are read."""

    def make(place: Place) -> Callable[[], Any]:
        from pipeline.data.augmentation.object_database import open_database

        place.written("0.bin", points)
        place.written("0.png", crop)
        car = {"path": "0.bin", "image_path": "0.png", "box3d_lidar": BOX, "num_points_in_gt": 2, **info}
        path = Path(place.written("dbinfos.pkl", pickle.dumps({"car": [car]})))

        def use() -> None:
            database = open_database(path)
            database.points(0)
            database.crop(0)

        return use

    return make


def objects(change: Callable[[pa.Table], pa.Table]) -> Callable[[Place], Callable[[], Any]]:
    """Our own database of the good dataset, with its index changed."""

    def make(place: Place) -> Callable[[], Any]:
        from pipeline.data.augmentation.object_database import open_database
        from pipeline.data.augmentation.object_database_writer import write_database
        from pipeline.data.formats.open import open_source

        folder = place.tmp / "objects"
        write_database(open_source(place.good / "data", "v1.0-mini", "mini_val"), folder)
        path = folder / "objects.parquet"
        pq.write_table(change(pq.read_table(path)), path)
        return lambda: open_database(folder)

    return make


def cell(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(made: pa.Table) -> pa.Table:
        field = made.schema.field(name)
        values = [value, *made[name].to_pylist()[1:]]
        return made.set_column(made.schema.names.index(name), field, pa.array(values, field.type))

    return change


def cut_jpeg(made: pa.Table) -> pa.Table:
    """Cut an image of a shard in the middle, and end it as a whole one ends."""
    jpeg = made["jpeg_CAM_BACK"][0].as_py()
    return cell("jpeg_CAM_BACK", jpeg[: len(jpeg) // 2] + EOI)(made)


def shown(make: Callable[[Place], Words]) -> Callable[[Place], Words]:
    """Read the shards as training does, instead of checking them."""
    return lambda place: read(Path(make(place)[2]))


def huge_and_long(path: Path) -> None:
    huge(path)
    data = path.read_bytes()
    path.write_bytes(data[:-2] + bytes(12_000_000) + EOI)


OBJECTS = [
    Bad(
        "shards",
        "jpeg_CAM_BACK",
        "half of it, and an end marker",
        shown(rows(cut_jpeg)),
        "…/CAM_BACK: is cut short before its end marker; restore the file",
    ),
    Bad(
        "image",
        "size",
        "65500 x 65500 claimed, in 12 MB",
        file("CAM_BACK", huge_and_long),
        "…/samples/CAM_BACK/….jpg: claims 65500 x 65500 pixels, more than the 67108864 that are read; restore the file",
    ),
    Bad(
        "dbinfos file",
        "path",
        "points of three numbers",
        dbinfos(points=bytes(24)),
        "…/0.bin: 24 bytes are not 2 points of 4 or more float32 numbers; write the database anew",
    ),
    Bad(
        "dbinfos file",
        "num_pts_feats",
        "6, and the points have five",
        dbinfos(num_pts_feats=6),
        "…/0.bin: 40 bytes are not 2 points of 6 float32 numbers; write the database anew",
    ),
    Bad(
        "dbinfos file",
        "num_points_in_gt",
        "-1",
        dbinfos(num_points_in_gt=-1),
        "…/dbinfos.pkl: num_points_in_gt is -1; expected a number of points, 0 or more; make the file anew",
    ),
    Bad(
        "dbinfos file",
        "path",
        "points with a ring index for a time lag",
        dbinfos(points=cloud(5, 25.0)),
        "…/0.bin: holds numbers that are not finite, or time lags outside 0 to 3 s; write the database anew",
    ),
    Bad(
        "dbinfos file",
        "box3d_lidar",
        "NaN",
        dbinfos(box3d_lidar=[np.nan] * 7),
        "…/dbinfos.pkl: object 0 (car) has centre, size and yaw [nan, …]; expected finite numbers",
    ),
    Bad(
        "dbinfos file",
        "car",
        "a number",
        dbinfos(path=3, box3d_lidar="x"),
        "…/dbinfos.pkl: not a dbinfos file of mmdet3d or CMT (ValueError: …); `biaswise data objects` makes a database of our own",
    ),
    Bad(
        "dbinfos file",
        "image_path",
        "a PNG cut short",
        dbinfos(crop=picture()[:-30]),
        "…/0.png: is cut short or damaged (… bytes); restore the file",
    ),
    Bad(
        "dbinfos file",
        "image_path",
        "a JPEG cut short, and an end marker",
        dbinfos(crop=picture(".jpg")[:-400] + EOI),
        "…/0.png: is cut short before its end marker; restore the file",
    ),
    Bad(
        "dbinfos file",
        "image_path",
        "text",
        dbinfos(crop=b"no picture"),
        "…/0.png: is no JPEG image (10 bytes); restore the file",
    ),
    Bad(
        "objects.parquet",
        "label",
        "77",
        objects(cell("label", 77)),
        "…/objects.parquet: label is …; expected 0 to 9; make the file anew",
    ),
    Bad(
        "objects.parquet",
        "crop_at",
        "-5",
        objects(cell("crop_at", -5)),
        "…/objects.bin: has … bytes, and object 0 lies outside them; it is cut short, write it anew",
    ),
    Bad(
        "objects.parquet",
        "num_points",
        "null",
        objects(cell("num_points", None)),
        "…/objects.parquet: has empty fields; write it anew",
    ),
]
