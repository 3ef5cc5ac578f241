"""Bad data, continued: what tables, info files and shards say of sensors and boxes, and hostile files."""

import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.bad_inputs.of_data import file, first, infos, infos_of, manifest, shard, shards, table
from tests.bad_inputs.place import SPLIT, Bad, Place, Words

EOI = b"\xff\xd9"
MAKE = "make it with mmdet3d's tools/create_data.py or `biaswise data infos`"
DAMAGED = "the tables are damaged, restore or generate them anew"


def check(root: Path | str) -> Words:
    return ["data", "check", str(root)]


def checked(make: Callable[[Place], Words]) -> Callable[[Place], Words]:
    """Give the same bad dataset to ``data check``."""
    return lambda place: check(make(place)[2])


def frame(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], Words]:
    """Spoil the first frame of an info file of format 1.1."""
    return infos(lambda content: change(content["data_list"][0]))


def box(**changes: Any) -> Callable[[Place], Words]:
    return frame(lambda f: f["instances"][0].update(changes))


def late(made: dict[str, Any], lag_s: float, **changes: Any) -> None:
    """Give a frame a sweep of that lag."""
    lidar = {"lidar_path": "x.bin", "lidar2sensor": np.eye(4).tolist()}
    made["lidar_sweeps"] = [{"timestamp": made["timestamp"] - lag_s, "lidar_points": lidar, **changes}]


def sweep(**changes: Any) -> Callable[[Place], Words]:
    return frame(lambda f: late(f, 0.05, **changes))


@cache
def converted(good: Path) -> bytes:
    """An info file of format 1.0 of mmdet3d's own converter."""
    from tests.pipeline.data.formats.spoilt import converter_infos

    return pickle.dumps(converter_infos(good / "data", good / "infos_1_0.pkl"))


def old(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], Words]:
    """Spoil every frame of an info file of format 1.0."""

    def make(place: Place) -> Words:
        content = pickle.loads(converted(place.good))
        for info in content["infos"]:
            change(info)
            info["sweeps"] = []  # key frames alone have none
        return ["data", "show", place.written("old.pkl", pickle.dumps(content)), "--out", str(place.tmp)]

    return make


def four_columns(path: Path) -> None:
    """Write points of four numbers, as many as make whole points of five."""
    points = np.fromfile(path, "<f4").reshape(-1, 5)[:1000, :4]
    points.tofile(path)


def odd_columns(path: Path) -> None:
    np.zeros(4003, "<f4").tofile(path)


def gap(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + EOI)


def huge(path: Path) -> None:
    data = path.read_bytes()
    place = data.index(b"\xff\xc0")
    path.write_bytes(data[: place + 5] + struct.pack(">HH", 65500, 65500) + data[place + 9 :])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def ring(place: Place) -> Words:
    """Let the samples of a scene go round, and claim a milliard of them."""

    def turn(samples: list[dict[str, Any]]) -> None:
        for sample in samples:
            sample["next"] = sample["next"] or sample["prev"]

    data = place.table("sample", turn)
    path = data / "v1.0-mini/scene.json"
    scenes = json.loads(path.read_text())
    for scene in scenes:
        scene["nbr_samples"] = 10**9
    path.write_text(json.dumps(scenes))
    return shard(data, place)


def leak(place: Place) -> Words:
    """A file beside ``samples`` that is a link out of the dataset."""
    secret = Path(place.written("secret.jpg", b"\xff\xd8 secret"))

    def point(shots: list[dict[str, Any]]) -> None:
        for shot in shots:
            if "/CAM_BACK/" in shot["filename"]:
                shot["filename"] = "leak"

    data = place.table("sample_data", point)
    (data / "leak").symlink_to(secret)
    return shard(data, place)


def linked_root(place: Place) -> Words:
    """A folder beside ``samples`` that is a link to all of the machine."""
    secret = Path(place.written("secret.jpg", b"\xff\xd8 secret"))

    def point(shots: list[dict[str, Any]]) -> None:
        for shot in shots:
            if "/CAM_BACK/" in shot["filename"]:
                shot["filename"] = f"x{secret}"

    data = place.table("sample_data", point)
    (data / "x").symlink_to("/")
    return shard(data, place)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def rows(change: Callable[[pa.Table], pa.Table]) -> Callable[[Place], Words]:
    """Change the rows of a shard, and let the manifest have its size and checksum."""
    from pipeline.data.formats.shard_manifest import checksum

    def make(place: Place) -> Words:
        folder = place.shards()
        path = folder / f"{SPLIT}-00000.parquet"
        pq.write_table(change(pq.read_table(path)), path)
        content = json.loads((folder / f"{SPLIT}.json").read_text())
        content["files"][0].update(bytes=path.stat().st_size, sha256=checksum(folder, path.name))
        (folder / f"{SPLIT}.json").write_text(json.dumps(content))
        return check(folder)

    return make


def column(name: str, value: Any) -> Callable[[Place], Words]:
    """Put a value into a column of the first row."""

    def change(made: pa.Table) -> pa.Table:
        place = made.schema.names.index(name)
        values = made[name].to_pylist()
        values[0] = value(values[0]) if callable(value) else value
        return made.set_column(place, made.schema.field(name), pa.array(values, made.schema.field(name).type))

    return rows(change)


def first_is(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value, *values[1:]]


class Forged:
    """What pickles as a call with a state."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def of_dtype(name: str, *state: Any) -> bytes:
    """A pickle of an array whose dtype has a forged state."""
    from numpy._core.multiarray import _reconstruct

    dtype = Forged(np.dtype, (name, False, True), state)
    array = Forged(_reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), dtype, False, b"\0" * 8))
    return pickle.dumps({"metainfo": array}, 2)


def laughs(depth: int = 60) -> Any:
    """Lists of lists that share their content: 2^60 of them if one writes them out."""
    made: Any = ["ha"]
    for _ in range(depth):
        made = [made, made]
    return made


def ring_of_lists() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def nested_key(depth: int = 60) -> bytes:
    """A dict whose key is a tuple of tuples, of which the hash would take 2^60 steps."""
    out = io.BytesIO()
    out.write(b"\x80\x04}K\x01\x85\x94")  # an empty dict; (1,), remembered
    for index in range(depth):
        out.write(b"h" + bytes([index]) + b"\x86\x94")  # itself again; a pair of both
    out.write(b"K\x01s.")
    return out.getvalue()


def weights(change: Callable[[dict[str, Any]], Any], key: str = "") -> Callable[[Place], Callable[[], Any]]:
    """Spoil a checkpoint as mmengine's Runner writes them, and load it into a layer."""

    def make(place: Place) -> Callable[[], Any]:
        from pipeline.detector.weights import load_weights

        state = dict(torch.nn.Linear(2, 2).state_dict())
        change(state)
        torch.save({"meta": {}, "state_dict": state}, place.tmp / "x.pth")
        return lambda: load_weights(torch.nn.Linear(2, 2), place.tmp / f"x.pth{key}")

    return make


def deep_table(place: Place) -> Words:
    data = place.dataset()
    (data / "v1.0-mini/sample.json").write_text("[" * 200_000 + "]" * 200_000)
    return shard(data, place)


def endless_infos(place: Place) -> Words:
    words = infos_of(b"")(place)
    os.truncate(words[2], 2**40)
    return words


def endless_table(place: Place) -> Words:
    data = place.dataset()
    os.truncate(data / "v1.0-mini/sample.json", 2**40)
    return shard(data, place)


def no_scenes(place: Place) -> Words:
    data = place.dataset()
    (data / "v1.0-mini/scene.json").write_text("[]")
    return check(data)


WEIGHT = "weight"
REFUSED = "…/infos.pkl: refused: "
BOXES = "…/infos.pkl: frame …: box 0 (trailer) has "
SENSORS = [
    Bad(
        "points",
        "numbers per point",
        "four, not stated",
        file("LIDAR_TOP", four_columns),
        "…pcd.bin: its fifth numbers are no ring indices, so its points may not have 5 numbers; state how many as num_pts_feats (of lidar_points in an info file, of sample_data in tables)",
    ),
    Bad(
        "points",
        "length",
        "fits no number of columns",
        file("LIDAR_TOP", odd_columns),
        "…pcd.bin: 16012 bytes is no whole number of points of 5 float32 numbers; the file is cut short, restore it",
    ),
    Bad(
        "info file",
        "num_pts_feats",
        "3",
        frame(lambda f: f["lidar_points"].update(num_pts_feats=3)),
        "…/infos.pkl: frame …: lidar_points.num_pts_feats is 3; expected 4 or more numbers per point (x, y, z, intensity); make the file anew",
    ),
    Bad(
        "info file",
        "categories",
        "none of the ten",
        infos(lambda c: c["metainfo"].update(categories={"Car": 0, "Pedestrian": 1})),
        "…/infos.pkl: its classes are ['Car', 'Pedestrian'], and none of them is one of car, truck, construction_vehicle, …; rename them to what they are",
    ),
    Bad(
        "info file",
        "bbox_label_3d",
        "99",
        box(bbox_label_3d=99),
        "…/infos.pkl: frame …: instances[0].bbox_label_3d is 99; expected a label of categories; make the file anew",
    ),
    Bad(
        "info file",
        "bbox_3d",
        "a width of 0",
        box(bbox_3d=[0.0, 0, 0, 4, 0, 2, 0]),
        BOXES + "centre, size and yaw [0.0, 0.0, 0.0, 4.0, 0.0, 2.0, 0.0]; expected sizes above 0",
    ),
    Bad(
        "info file",
        "bbox_3d",
        "NaN",
        box(bbox_3d=[float("nan"), 0, 0, 4, 2, 2, 0]),
        BOXES + "centre, size and yaw [nan, …]; expected finite numbers",
    ),
    Bad(
        "info file",
        "bbox_3d",
        "1e300",
        box(bbox_3d=[1e300, 0, 0, 4, 2, 2, 0]),
        BOXES + "centre, size and yaw [inf, …]; expected finite numbers",
    ),
    Bad(
        "info file",
        "velocity",
        "infinite",
        box(velocity=[float("inf"), 0]),
        BOXES + "velocity [inf, 0.0]; expected finite numbers, or NaN if unknown",
    ),
    Bad(
        "info file",
        "num_lidar_pts",
        "-1",
        box(num_lidar_pts=-1),
        "…/infos.pkl: frame …: num_lidar_pts is -1; expected a number of points, 0 or more; make the file anew",
    ),
    Bad(
        "info file",
        "bbox_3d_isvalid",
        "a word",
        box(bbox_3d_isvalid="yes"),
        "…/infos.pkl: frame …: bbox_3d_isvalid is 'yes'; expected True or False; make the file anew",
    ),
    Bad(
        "info file",
        "lidar2cam",
        "NaN",
        frame(lambda f: f["images"]["CAM_BACK"].update(lidar2cam=np.full((4, 4), np.nan).tolist())),
        "…/infos.pkl: frame …: CAM_BACK.lidar2cam is [[nan, …]; expected finite numbers of shape (4, 4); make the file anew",
    ),
    Bad(
        "info file",
        "lidar2cam",
        "zeros",
        frame(lambda f: f["images"]["CAM_BACK"].update(lidar2cam=np.zeros((4, 4)).tolist())),
        "…/infos.pkl: frame …: CAM_BACK.lidar2cam is [[0.0, …]; expected a rotation and a shift over the row 0, 0, 0, 1; make the file anew",
    ),
    Bad(
        "info file",
        "cam2img",
        "zeros",
        frame(lambda f: f["images"]["CAM_BACK"].update(cam2img=np.zeros((3, 3)).tolist())),
        "…/infos.pkl: frame …: CAM_BACK.cam2img is [[0.0, …]; expected a matrix that can be inverted; make the file anew",
    ),
    Bad(
        "info file",
        "images.CAM_BACK",
        "no entry",
        frame(lambda f: f["images"].pop("CAM_BACK")),
        'frame …: has no image of CAM_BACK (the dataset names none); restore it, or set missing_cameras="black"',
    ),
    Bad(
        "info file",
        "images.CAM_BACK",
        "None",
        frame(lambda f: f["images"].update(CAM_BACK=None)),
        'frame …: has no image of CAM_BACK (the dataset names none); restore it, or set missing_cameras="black"',
    ),
    Bad(
        "info file",
        "lidar_sweeps.timestamp",
        "in microseconds",
        sweep(timestamp=1.5e15),
        "…/infos.pkl: frame …: lidar_sweeps[0].timestamp is 1500000000000000.0; expected a time since 1970 in s; make the file anew",
    ),
    Bad(
        "info file",
        "lidar_sweeps.timestamp",
        "5 s before the key frame",
        frame(lambda f: late(f, 5)),
        "…/infos.pkl: frame …: lidar_sweeps[0].timestamp is 5 s before the key frame; expected 0 to 3 s; it is of another unit or another sweep, make the file anew",
    ),
    Bad(
        "info file",
        "lidar_sweeps.timestamp",
        "after the key frame",
        frame(lambda f: late(f, -0.5)),
        "…/infos.pkl: frame …: lidar_sweeps[0].timestamp is -0.5 s before the key frame; expected 0 to 3 s; it is of another unit or another sweep, make the file anew",
    ),
    Bad(
        "info file",
        "lidar_sweeps.timestamp",
        "missing",
        sweep(timestamp=None),
        "…/infos.pkl: frame …: lidar_sweeps[0].timestamp is None; expected a finite number; make the file anew",
    ),
    Bad(
        "info file 1.0",
        "gt_names",
        "none of the ten",
        old(lambda f: f.update(gt_names=np.array(["Car"] * len(f["gt_names"])))),
        "…/old.pkl: its classes are ['Car'], and none of them is one of car, truck, …; rename them to what they are",
    ),
    Bad(
        "info file 1.0",
        "gt_boxes",
        "width and length exchanged",
        old(lambda f: f.update(gt_boxes=f["gt_boxes"][:, [0, 1, 2, 4, 3, 5, 6]])),
        "…/old.pkl: its cars are … m long, … m wide: gt_boxes have width and length exchanged, as mmdet3d before 1.0 wrote them; make it with 1.0",
    ),
    Bad(
        "info file 1.0",
        "gt_velocity",
        "one too few",
        old(lambda f: f.update(gt_velocity=f["gt_velocity"][1:])),
        "…/old.pkl: frame …: gt_velocity is an array of shape (…, 2); expected … velocities, one for each of gt_names; make the file anew",
    ),
    Bad(
        "info file 1.0",
        "sensor2lidar_translation",
        "not that of the poses",
        old(lambda f: f["cams"]["CAM_BACK"].update(sensor2lidar_translation=np.ones(3))),
        "…/old.pkl: frame …: CAM_BACK.sensor2lidar differs from its poses by …; expected one calibration, make the file anew",
    ),
    Bad(
        "info file 1.0",
        "sensor2ego_rotation",
        "all 0",
        old(lambda f: f["cams"]["CAM_BACK"].update(sensor2ego_rotation=[0.0] * 4)),
        "…/old.pkl: frame …: sensor2ego rotation is [0.0, 0.0, 0.0, 0.0]; expected a quaternion w, x, y, z, which is not all zeros; make the file anew",
    ),
    Bad(
        "sample_annotation.json",
        "size",
        "NaN",
        table("sample_annotation", lambda r: first(r, size=[float("nan")] * 3)),
        "…: key frame … of scene-0103: box 0 (…) sample_annotation size is [nan, nan, nan]; expected finite numbers of shape (3,); make the file anew",
    ),
    Bad(
        "sample_annotation.json",
        "rotation",
        "all 0",
        checked(table("sample_annotation", lambda r: first(r, rotation=[0.0] * 4))),
        "…: key frame … of scene-0103: box 0 (…) sample_annotation rotation is [0.0, 0.0, 0.0, 0.0]; expected a quaternion w, x, y, z, which is not all zeros; make the file anew",
    ),
    Bad(
        "sample_annotation.json",
        "num_lidar_pts",
        "-3",
        checked(table("sample_annotation", lambda r: first(r, num_lidar_pts=-3))),
        "…: key frame … of scene-0103: num_lidar_pts is -3; expected a number of points, 0 or more; make the file anew",
    ),
    Bad(
        "scene.json",
        "nbr_samples",
        "10^9, and samples in a circle",
        ring,
        f"…/sample.json: scene-0103 should have 1000000000 linked samples, found 2 in a circle; {DAMAGED}",
    ),
    Bad(
        "sample_data.json",
        "filename",
        "a link out of the dataset",
        leak,
        "…/data/leak: is a link to …/secret.jpg, outside the dataset …; copy it in, or make the whole folder `samples` or `sweeps` a link",
    ),
    Bad(
        "sample_data.json",
        "filename",
        "through a link to /",
        linked_root,
        "…: is a link to …, outside the dataset …; copy it in, or make the whole folder `samples` or `sweeps` a link",
    ),
    Bad(
        "image",
        "file",
        "a link to itself",
        file("CAM_BACK", loop),
        "…/samples/CAM_BACK/….jpg: cannot be read (Too many levels of symbolic links); the dataset is incomplete",
    ),
    Bad(
        "image",
        "file",
        "half of it, and an end marker",
        checked(file("CAM_BACK", gap)),
        "…/samples/CAM_BACK/….jpg: is cut short before its end marker; restore the file",
    ),
    Bad(
        "image",
        "size",
        "65500 x 65500 claimed",
        file("CAM_BACK", huge),
        "…/samples/CAM_BACK/….jpg: claims 65500 x 65500 pixels, more than its … bytes can hold; restore the file",
    ),
    Bad(
        "image",
        "file",
        "of 1 TB, and empty",
        file("CAM_BACK", lambda path: os.truncate(path, 2**40)),
        "…/samples/CAM_BACK/….jpg: has 1099511627776 bytes, expected 268435456 at most",
    ),
    Bad(
        "info file",
        "file",
        "of 1 TB, and empty",
        endless_infos,
        "…/infos.pkl: has 1099511627776 bytes, expected 4294967296 at most",
    ),
    Bad(
        "sample.json",
        "file",
        "of 1 TB, and empty",
        endless_table,
        f"…/sample.json: has 1099511627776 bytes, expected 4294967296 at most; {DAMAGED}",
    ),
    Bad(
        "scene.json",
        "file",
        "an empty list",
        no_scenes,
        "…/data: holds no frame; restore the tables, or generate them anew",
    ),
    Bad(
        "image",
        "file",
        "a named pipe",
        file("CAM_BACK", pipe),
        "…/samples/CAM_BACK/….jpg: is no regular file (a pipe or a device); restore the file",
    ),
    Bad(
        "manifest",
        "file",
        "a named pipe",
        shards(f"{SPLIT}.json", pipe),
        "…/mini_val.json: not a manifest of format 3 (it is no regular file); write the shards anew",
    ),
    Bad(
        "manifest",
        "tokens",
        "of another file",
        manifest(lambda c: c.update(tokens=c["tokens"][::-1])),
        "…/mini_val-00000.parquet: row 0 is frame … of scene-0103, the manifest lists … of scene-0103; it is of other files",
    ),
    Bad(
        "manifest",
        "files",
        "a file twice",
        manifest(lambda c: c.update(files=c["files"] * 2, tokens=[*"abcd"], scenes=c["scenes"] * 2)),
        "…/mini_val.json: not a manifest of format 3 (it lists the file 'mini_val-00000.parquet' twice); write the shards anew",
    ),
    Bad(
        "manifest",
        "tokens",
        "a frame twice",
        manifest(lambda c: c.update(tokens=c["tokens"][:1] * 2)),
        "…/mini_val.json: not a manifest of format 3 (it lists the frame … twice); write the shards anew",
    ),
    Bad(
        "shards",
        "rows",
        "one fewer than the manifest says",
        rows(lambda made: made.slice(1)),
        "…/mini_val-00000.parquet: has 1 rows in groups of [1], its manifest says [2]; write it anew",
    ),
    Bad(
        "shards",
        "labels",
        "missing",
        rows(lambda made: made.drop_columns(["labels"])),
        "…/mini_val-00000.parquet: has other columns than format 3; write it anew",
    ),
    Bad(
        "shards",
        "labels",
        "-1",
        column("labels", first_is(-1)),
        "…/mini_val-00000.parquet: frame …: labels is [-1, …]; expected 0 to 9; make the file anew",
    ),
    Bad(
        "shards",
        "labels",
        "null",
        column("labels", None),
        "…/mini_val-00000.parquet: frame …: labels is None; expected values; make the file anew",
    ),
    Bad(
        "shards",
        "num_points",
        "-5",
        column("num_points", first_is(-5)),
        "…/mini_val-00000.parquet: frame …: num_points is -5; expected a number of points, 0 or more; make the file anew",
    ),
    Bad(
        "shards",
        "cam2img",
        "zeros",
        column("cam2img", lambda values: [0.0] * len(values)),
        "…/mini_val-00000.parquet: frame …: cam2img is …; expected a matrix that can be inverted; make the file anew",
    ),
    Bad(
        "info file",
        "an array's dtype",
        "object",
        infos_of(of_dtype("O8", 3, "|", None, None, None, -1, -1, 63)),
        REFUSED + f"an array of dtype 'O8'; expected numbers or texts; {MAKE}",
    ),
    Bad(
        "info file",
        "an array's dtype",
        "an object at offset 0 of V8",
        infos_of(of_dtype("V8", 3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 27)),
        REFUSED + f"an array of dtype '…'; expected numbers or texts; {MAKE}",
    ),
    Bad(
        "info file",
        "an array's dtype",
        "a field 2^30 bytes away",
        infos_of(of_dtype("f8", 3, "<", None, ("a",), {"a": (np.dtype("f8"), 2**30)}, 8, 1, 0)),
        REFUSED + f"an array of a dtype with parts; expected numbers or texts; {MAKE}",
    ),
    Bad(
        "info file",
        "an array's dtype",
        "a subarray larger than it",
        infos_of(of_dtype("f8", 3, "<", (np.dtype("f8"), (2**20,)), None, None, -1, -1, 0)),
        REFUSED + f"an array of a dtype with parts; expected numbers or texts; {MAKE}",
    ),
    Bad(
        "info file",
        "an array's shape",
        "more than its bytes",
        infos_of(pickle.dumps({"metainfo": np.arange(5)}, 2).replace(b"K\x05\x85", b"K\xff\x85")),
        REFUSED + f"an array of shape (255,) and 40 bytes, which do not agree; {MAKE}",
    ),
    Bad(
        "info file",
        "a bytearray",
        "of 2^60 bytes",
        infos_of(pickle.dumps({"metainfo": Forged(bytearray, (2**60,))})),
        REFUSED + f"a bytearray of a stated length; {MAKE}",
    ),
    Bad(
        "info file",
        "the pickle's memo",
        "an index of 2^31",
        infos_of(b"\x80\x02}r\xff\xff\xff\x7f."),
        f"…/infos.pkl: info version '1.1' with []; expected 1.1 with data_list, or infos of 1.0; {MAKE}",
    ),
    Bad(
        "info file",
        "info_version",
        "lists that share their content, 2^60 in all",
        infos(lambda c: c["metainfo"].update(info_version=laughs())),
        REFUSED + f"values shared so often that they exceed the file by far; {MAKE}",
    ),
    Bad(
        "info file",
        "ego2global",
        "lists that share their content, 2^60 in all",
        frame(lambda f: f.update(ego2global=laughs())),
        REFUSED + f"values shared so often that they exceed the file by far; {MAKE}",
    ),
    Bad(
        "info file",
        "scene_name",
        "a list that is in itself",
        frame(lambda f: f.update(scene_name=ring_of_lists())),
        REFUSED + f"a container that is in itself; {MAKE}",
    ),
    Bad(
        "info file",
        "scene_name",
        "a list",
        frame(lambda f: f.update(scene_name=["x"])),
        "…/infos.pkl: frame …: scene_name is ['x']; expected text; make the file anew",
    ),
    Bad(
        "info file",
        "timestamp",
        "a number of 5,000 digits",
        frame(lambda f: f.update(timestamp=10**5000)),
        "…/infos.pkl: frame …: timestamp is a number of 16610 bits; expected a finite number; make the file anew",
    ),
    Bad(
        "info file",
        "a key",
        "tuples in tuples, 2^60 in all",
        infos_of(nested_key()),
        REFUSED + f"a container as a key or in a set; {MAKE}",
    ),
    Bad(
        "checkpoint",
        "weights",
        "NaN",
        weights(lambda state: state[WEIGHT].fill_(float("nan"))),
        f"…/x.pth: 1 tensors hold numbers that are not finite: {WEIGHT}; its training diverged, or the file is damaged",
    ),
    Bad(
        "checkpoint",
        "weights",
        "a sparse tensor",
        weights(lambda state: state.update({WEIGHT: torch.zeros(3).to_sparse()})),
        f"…/x.pth holds a torch._utils._rebuild_sparse_tensor as '{WEIGHT}', expected a tensor; save its tensors alone",
    ),
    Bad(
        "checkpoint",
        "weights",
        "2^40 elements of one number",
        weights(lambda state: state.update({WEIGHT: torch.zeros(1).expand(2**40)})),
        f"…/x.pth is not a whole checkpoint of PyTorch ({WEIGHT} has elements outside its 1 in the file); copy or make it again",
    ),
    Bad(
        "checkpoint",
        "#ema_state_dict",
        "not there",
        lambda place: weights(lambda state: None, "#ema_state_dict")(place),
        "…/x.pth holds no named tensors; expected a state dict, at the top or under 'ema_state_dict' (it has state_dict)",
    ),
    Bad(
        "tables",
        "sample.json",
        "nested 200,000 deep",
        deep_table,
        f"…/v1.0-mini: the devkit cannot open these tables (…recursion…); {DAMAGED}",
    ),
    Bad(
        "manifest",
        "file",
        "nested 200,000 deep",
        shards(f"{SPLIT}.json", lambda path: path.write_text("[" * 200_000 + "]" * 200_000)),
        "…/mini_val.json: not a manifest of format 3 (nested too deep, expected 64 levels at most); write the shards anew",
    ),
    Bad(
        "scene.json",
        "name",
        "a list",
        table("scene", lambda r: first(r, name=["scene-0103"])),
        f"…/v1.0-mini: cannot be read (TypeError: unhashable type: 'list'); {DAMAGED}",
    ),
]
