"""Bad data: tables, images, points, calibration, info files, shards, object databases."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.bad_inputs.place import SPLIT, VERSION, Bad, Place, Words


def shard(root: Path, place: Place, *more: str) -> Words:
    """Convert a dataset: reads every file of a split."""
    return ["data", "shard", str(root), "--split", SPLIT, "--out", str(place.tmp / "out"), *more]


def table(name: str, change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Place], Words]:
    return lambda place: shard(place.table(name, change), place)


def file(channel: str, change: Callable[[Path], Any]) -> Callable[[Place], Words]:
    """Spoil the first file of a sensor."""

    def make(place: Place) -> Words:
        data = place.dataset()
        scene = next(
            s for s in json.loads((data / VERSION / "scene.json").read_text()) if s["name"] == "scene-0103"
        )
        shots = json.loads((data / VERSION / "sample_data.json").read_text())
        name = next(
            s["filename"]
            for s in shots
            if s["sample_token"] == scene["first_sample_token"] and f"/{channel}/" in s["filename"]
        )
        change(data / name)
        return shard(data, place)

    return make


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def smaller(path: Path) -> None:
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (200, 100)))


def link_out(path: Path) -> None:
    away = path.rename(path.parents[3] / "elsewhere.jpg")
    path.symlink_to(away)


def infinite(path: Path) -> None:
    points = np.fromfile(path, "<f4")
    points[1] = np.inf
    points.tofile(path)


def far(place: Place) -> Words:
    data = place.dataset()
    for path in (data / "samples/LIDAR_TOP").iterdir():
        points = np.fromfile(path, "<f4")
        points[3] = 1e6
        points.tofile(path)
    return shard(data, place, "--points", "float16")


def without_map(place: Place) -> Words:
    data = place.dataset()
    (data / VERSION / "ego_pose.json").unlink()
    return shard(data, place)


def not_json(place: Place) -> Words:
    data = place.dataset()
    (data / VERSION / "sample.json").write_text('[{"token": ')
    return shard(data, place)


def of_calibration(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], Words]:
    def spoil(records: list[dict[str, Any]]) -> None:
        for record in records:
            if record["camera_intrinsic"]:
                change(record)

    return table("calibrated_sensor", spoil)


class Harmful:
    """What runs code when a pickle of it is opened."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("1 + 1",)


def infos(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], Words]:
    def make(place: Place) -> Words:
        content = pickle.loads((place.good / "data/infos.pkl").read_bytes())
        change(content)
        return ["data", "show", place.written("infos.pkl", pickle.dumps(content)), "--out", str(place.tmp)]

    return make


def infos_of(data: bytes) -> Callable[[Place], Words]:
    return lambda place: ["data", "show", place.written("infos.pkl", data), "--out", str(place.tmp)]


def manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], Words]:
    def make(place: Place) -> Words:
        path = place.shards() / f"{SPLIT}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return read(path.parent)

    return make


def read(folder: Path) -> Words:
    return ["data", "show", str(folder), "--split", SPLIT, "--out", str(folder / "drawn")]


def shards(name: str, change: Callable[[Path], Any], check: bool = False) -> Callable[[Place], Words]:
    def make(place: Place) -> Words:
        path = place.shards() / name
        change(path)
        return ["data", "check", str(path.parent)] if check else read(path.parent)

    return make


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def garbage(path: Path) -> None:
    path.write_bytes(struct.pack("<I", 7) * (path.stat().st_size // 4 + 1)[: path.stat().st_size])


def out_is_a_file(place: Place) -> Words:
    place.written("out", "")
    return shard(place.good / "data", place)


def database(info: dict[str, Any]) -> Callable[[Place], Any]:
    def make(place: Place) -> Callable[[], Any]:
        from pipeline.data.augmentation.object_database import InfoDatabase

        path = Path(place.written("dbinfos.pkl", pickle.dumps({"car": [info]})))
        return lambda: InfoDatabase(path, place.tmp).points(0)

    return make


def first(records: list[dict[str, Any]], **changes: Any) -> None:
    for record in records:
        record.update(changes)


TABLES = [
    Bad(
        "tables",
        "folder",
        "not there",
        lambda p: ["data", "shard", str(p.tmp), "--split", SPLIT, "--out", str(p.tmp / "o")],
        "…/v1.0-mini: no such folder; expected the nuScenes tables there, check root and version",
    ),
    Bad(
        "tables",
        "ego_pose.json",
        "missing",
        without_map,
        "…/ego_pose.json: table missing; expected all of category, attribute, …",
    ),
    Bad(
        "tables",
        "sample.json",
        "cut short",
        not_json,
        "…/v1.0-mini: the devkit cannot open these tables (Expecting value: …); the tables are damaged, restore or generate them anew",
    ),
    Bad(
        "sample_data.json",
        "calibrated_sensor_token",
        "names no record",
        table("sample_data", lambda r: first(r, calibrated_sensor_token="0")),
        "…/v1.0-mini: a record refers to '0', which no table has; the tables are damaged, restore or generate them anew",
    ),
    Bad(
        "sample_data.json",
        "filename",
        "../../etc/passwd",
        table("sample_data", lambda r: first(r, filename="../../etc/passwd")),
        "…/sample_data: names the file '../../etc/passwd'; expected a path inside … without '..' and without a leading '/'; the dataset is damaged or not to be trusted",
    ),
    Bad(
        "sample_data.json",
        "filename",
        "/etc/passwd",
        table("sample_data", lambda r: first(r, filename="/etc/passwd")),
        "…/sample_data: names the file '/etc/passwd'; expected a path inside … without '..' and without a leading '/'; the dataset is damaged or not to be trusted",
    ),
    Bad(
        "sample_data.json",
        "filename",
        "no key",
        table("sample_data", lambda r: [x.pop("filename") for x in r]),
        "…/v1.0-mini: key frame … of scene-0103 refers to 'filename', which no table has; the tables are damaged, restore or generate them anew",
    ),
    Bad(
        "scene.json",
        "name",
        "in no split",
        table("scene", lambda r: first(r, name="scene-9999")),
        "…/v1.0-mini: no scene of split 'mini_val' (scenes here: scene-9999, …); choose the split or the version that belongs to this dataset",
    ),
    Bad(
        "scene.json",
        "nbr_samples",
        "99",
        table("scene", lambda r: first(r, nbr_samples=99)),
        "…/sample.json: scene-0103 should have 99 linked samples, found 2; the tables are damaged, restore or generate them anew",
    ),
    Bad(
        "category.json",
        "name",
        "vehicle.spaceship",
        table("category", lambda r: first(r, name="vehicle.spaceship")),
        "…/category.json: unknown class 'vehicle.spaceship'; expected category names of nuScenes, such as 'vehicle.car'",
    ),
    Bad(
        "sample_annotation.json",
        "size",
        "two numbers",
        table("sample_annotation", lambda r: first(r, size=[1.0, 2.0])),
        "…/v1.0-mini: key frame … of scene-0103: box 0 (trailer) sample_annotation size is [1.0, 2.0]; expected finite numbers of shape (3,); make the file anew",
    ),
    Bad(
        "ego_pose.json",
        "rotation",
        "three numbers",
        table("ego_pose", lambda r: first(r, rotation=[1.0, 0.0, 0.0])),
        "…/v1.0-mini: key frame … of scene-0103: ego_pose of LIDAR_TOP rotation is [1.0, 0.0, 0.0]; expected finite numbers of shape (4,); make the file anew",
    ),
    Bad(
        "calibrated_sensor.json",
        "camera_intrinsic",
        "2 x 3",
        of_calibration(lambda r: r.update(camera_intrinsic=r["camera_intrinsic"][:2])),
        "…/v1.0-mini: key frame … of scene-0103: camera_intrinsic of CAM_FRONT is [[…]]; expected finite numbers of shape (3, 3) or (3, 4) or (4, 4); make the file anew",
    ),
    Bad(
        "calibrated_sensor.json",
        "camera_intrinsic",
        "NaN",
        of_calibration(lambda r: r.update(camera_intrinsic=[[float("nan")] * 3] * 3)),
        "…/v1.0-mini: key frame … of scene-0103: camera_intrinsic of CAM_FRONT is [[nan, …]]; expected finite numbers of shape (3, 3) or (3, 4) or (4, 4); make the file anew",
    ),
    Bad(
        "calibrated_sensor.json",
        "rotation",
        "all 0",
        of_calibration(lambda r: r.update(rotation=[0.0] * 4)),
        "…/v1.0-mini: key frame … of scene-0103: calibrated_sensor of CAM_FRONT rotation is [0.0, 0.0, 0.0, 0.0]; expected a quaternion w, x, y, z, which is not all zeros; make the file anew",
    ),
]
FILES = [
    Bad(
        "image",
        "file",
        "missing",
        file("CAM_BACK", Path.unlink),
        'frame …: has no image of CAM_BACK (…/samples/CAM_BACK/….jpg); restore it, or set missing_cameras="black"',
    ),
    Bad(
        "image",
        "file",
        "cut short",
        file("CAM_BACK", cut),
        "…/samples/CAM_BACK/….jpg: is cut short (… bytes); restore the file",
    ),
    Bad(
        "image",
        "file",
        "text",
        file("CAM_BACK", lambda p: p.write_text("no picture")),
        "…/samples/CAM_BACK/….jpg: is no JPEG image (10 bytes); restore the file",
    ),
    Bad(
        "image",
        "size",
        "not that of the others",
        file("CAM_BACK", smaller),
        "frame …: its images must have one size, got … 400x225, …CAM_BACK… 200x100, … 400x225",
    ),
    Bad(
        "image",
        "file",
        "a link out of the dataset",
        file("CAM_BACK", link_out),
        "…/samples/CAM_BACK/….jpg: is a link to …/elsewhere.jpg, outside the dataset …; copy it in, or make the whole folder `samples` or `sweeps` a link",
    ),
    Bad(
        "points",
        "file",
        "cut short",
        file("LIDAR_TOP", cut),
        "…/samples/LIDAR_TOP/….pcd.bin: … bytes is no whole number of points of 5 float32 numbers; the file is cut short, restore it",
    ),
    Bad(
        "points",
        "file",
        "empty",
        file("LIDAR_TOP", lambda p: p.write_bytes(b"")),
        "…/samples/LIDAR_TOP/….pcd.bin: 0 bytes is no whole number of points of 5 float32 numbers; the file is cut short, restore it",
    ),
    Bad(
        "points",
        "y",
        "infinite",
        file("LIDAR_TOP", infinite),
        "…/samples/LIDAR_TOP/….pcd.bin: holds coordinates that are not finite; restore the file",
    ),
    Bad(
        "points",
        "intensity",
        "1000000, as float16",
        far,
        "frame …: holds a 1000000, and float16 ends at 65504; use float32",
    ),
]
INFOS = [
    Bad(
        "info file",
        "metainfo",
        "an object that runs code",
        infos(lambda c: c.update(metainfo=Harmful())),
        "…/infos.pkl: refused: it asks for builtins.eval, and only numpy arrays and plain values are admitted; make it with mmdet3d's tools/create_data.py or `biaswise data infos`",
    ),
    Bad(
        "info file",
        "file",
        "text",
        infos_of(b"no pickle"),
        "…/infos.pkl: refused: not a whole pickle; make it with mmdet3d's tools/create_data.py or `biaswise data infos`",
    ),
    Bad(
        "info file",
        "file",
        "a list",
        infos_of(pickle.dumps([1])),
        "…/infos.pkl: holds a list; expected a dict",
    ),
    Bad(
        "info file",
        "info_version",
        "1.0",
        infos(lambda c: c["metainfo"].update(info_version="1.0")),
        "…/infos.pkl: info version '1.0' with ['data_list', 'metainfo']; expected 1.1 with data_list, or infos of 1.0; make it with mmdet3d's tools/create_data.py or `biaswise data infos`",
    ),
    Bad(
        "info file",
        "data_list",
        "missing",
        infos(lambda c: c.pop("data_list")),
        "…/infos.pkl: info version '1.1' with ['metainfo']; expected 1.1 with data_list, or infos of 1.0; make it with mmdet3d's tools/create_data.py or `biaswise data infos`",
    ),
    Bad(
        "info file",
        "CAM_BACK.cam2img",
        "missing",
        infos(lambda c: c["data_list"][0]["images"]["CAM_BACK"].pop("cam2img")),
        "…/infos.pkl: frame …: CAM_BACK.cam2img is None; expected finite numbers of shape (3, 3) or (3, 4) or (4, 4); make the file anew",
    ),
    Bad(
        "info file",
        "lidar2ego",
        "two numbers",
        infos(lambda c: c["data_list"][0]["lidar_points"].update(lidar2ego=[1, 2])),
        "…/infos.pkl: frame …: lidar_points.lidar2ego is [1, 2]; expected finite numbers of shape (4, 4); make the file anew",
    ),
    Bad(
        "info file",
        "img_path",
        "/etc/passwd",
        infos(lambda c: c["data_list"][0]["images"]["CAM_BACK"].update(img_path="/etc/passwd")),
        "…/infos.pkl: an info file: names the file '/etc/passwd'; expected a path inside … without '..' and without a leading '/'; the dataset is damaged or not to be trusted",
    ),
    Bad(
        "info file",
        "bbox_3d",
        "six numbers",
        infos(lambda c: c["data_list"][0]["instances"][0].update(bbox_3d=[0.0] * 6)),
        "…/infos.pkl: frame …: box 0 (trailer) is [0.0, 0.0, 0.0, 0.0, ...]; expected 9 numbers: centre, size, yaw, velocity x and y; make the file anew",
    ),
    Bad(
        "info file",
        "timestamp",
        "a word",
        infos(lambda c: c["data_list"][0].update(timestamp="noon")),
        "…/infos.pkl: frame …: timestamp is 'noon'; expected a finite number; make the file anew",
    ),
    Bad(
        "dbinfos file",
        "path",
        "../secret.bin",
        database({"box3d_lidar": [1] * 7, "path": "../secret.bin", "num_points_in_gt": 1}),
        "a dbinfos file: names the file '../secret.bin'; expected a path inside … without '..' and without a leading '/'; the dataset is damaged or not to be trusted",
    ),
    Bad(
        "dbinfos file",
        "box3d_lidar",
        "missing",
        database({"path": "x.bin", "num_points_in_gt": 1}),
        "…/dbinfos.pkl: not a dbinfos file of mmdet3d or CMT (KeyError: 'box3d_lidar'); `biaswise data objects` makes a database of our own",
    ),
]
SHARDS = [
    Bad(
        "shards",
        "manifest",
        "missing",
        shards(f"{SPLIT}.json", Path.unlink),
        "…/mini_val.json: no finished shards of split 'mini_val' here (…)",
    ),
    Bad(
        "manifest",
        "file",
        "cut short",
        shards(f"{SPLIT}.json", cut),
        "…/mini_val.json: not a manifest of format 3 (Expecting …); write the shards anew",
    ),
    Bad(
        "manifest",
        "format",
        "99",
        manifest(lambda c: c.update(format=99)),
        "…/mini_val.json: not a manifest of format 3 (its format is 99); write the shards anew",
    ),
    Bad(
        "manifest",
        "points",
        "int8",
        manifest(lambda c: c.update(points="int8")),
        "…/mini_val.json: not a manifest of format 3 (its points are 'int8', expected float32 or float16); write the shards anew",
    ),
    Bad(
        "manifest",
        "tokens",
        "one too few",
        manifest(lambda c: c["tokens"].pop()),
        "…/mini_val.json: not a manifest of format 3 (it has 2 rows and 1 tokens); write the shards anew",
    ),
    Bad(
        "manifest",
        "files.groups",
        "one frame too many",
        manifest(lambda c: c["files"][0].update(groups=[9])),
        "…/mini_val.json: not a manifest of format 3 ('mini_val-00000.parquet' has 2 rows in groups of [9]); write the shards anew",
    ),
    Bad(
        "manifest",
        "files.name",
        "../x-00000.parquet",
        manifest(lambda c: c["files"][0].update(name="../x-00000.parquet")),
        "…: its manifest names the file '../x-00000.parquet'; expected a name such as mini_train-00000.parquet, in this folder; the manifest is not ours, do not use it",
    ),
    Bad(
        "shards",
        "file",
        "missing",
        shards(f"{SPLIT}-00000.parquet", Path.unlink),
        "…/mini_val-00000.parquet: expected … bytes, found no file; the shards are incomplete, write them anew",
    ),
    Bad(
        "shards",
        "file",
        "cut short",
        shards(f"{SPLIT}-00000.parquet", cut),
        "…/mini_val-00000.parquet: expected … bytes, found …; the shards are incomplete, write them anew",
    ),
    Bad(
        "shards",
        "file",
        "overwritten",
        shards(f"{SPLIT}-00000.parquet", lambda p: p.write_bytes(b"x" * p.stat().st_size)),
        "…/mini_val-00000.parquet: cannot be read (Parquet magic bytes not found in footer. …); write the shards anew",
    ),
    Bad(
        "shards",
        "file",
        "a flipped bit",
        shards(f"{SPLIT}-00000.parquet", flip, check=True),
        "…/mini_val-00000.parquet: checksum differs from the manifest's; write it anew",
    ),
    Bad(
        "shards",
        "file",
        "a link",
        shards(
            f"{SPLIT}-00000.parquet",
            lambda p: p.rename(p.with_suffix(".x")) and p.symlink_to(p.with_suffix(".x")),
        ),
        "…/mini_val-00000.parquet: is a link, and shards are read from their folder; copy it there",
    ),
    Bad(
        "data shard",
        "--out",
        "holds the split",
        lambda p: ["data", "shard", str(p.good / "data"), "--split", SPLIT, "--out", str(p.shards())],
        "…/mini_val.json: split 'mini_val' is there already; remove it or choose another folder",
    ),
    Bad(
        "data shard",
        "--out",
        "a file",
        out_is_a_file,
        "…/out: shards cannot be written (…); free space or choose another",
    ),
    Bad(
        "data shard",
        "--out",
        "gopher://x/y",
        lambda p: ["data", "shard", str(p.good / "data"), "--split", SPLIT, "--out", "gopher://x/y"],
        "gopher://x/y: no store that pyarrow can open (…)",
    ),
    Bad(
        "data shard",
        "--split",
        "mini_trian",
        lambda p: ["data", "shard", str(p.good / "data"), "--split", "mini_trian", "--out", str(p.tmp / "o")],
        "unknown split 'mini_trian'; the devkit has train, val, test, mini_train, mini_val, train_detect, train_track",
    ),
    Bad(
        "data shard",
        "--ray-tasks",
        "0",
        lambda p: shard(p.good / "data", p, "--ray-tasks", "0"),
        "--ray-tasks 0: expected 1 or more files to be written at once",
    ),
    Bad(
        "data shard",
        "--points",
        "int8",
        lambda p: shard(p.good / "data", p, "--points", "int8"),
        "argument --points: invalid choice: 'int8' (choose from …)",
    ),
    Bad(
        "data check",
        "path",
        "nothing there",
        lambda p: ["data", "check", str(p.tmp / "nothing")],
        "…/nothing/v1.0-mini: no nuScenes tables and no shards here; check the path",
    ),
]
DATA = [*TABLES, *FILES, *INFOS, *SHARDS]
