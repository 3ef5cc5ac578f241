"""Reads the key frames of a nuScenes split through the official devkit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.settings import CLASSES
from pipeline.data import sensors
from pipeline.data.devkit import import_devkit
from pipeline.data.formats.frame_record import FrameRecord, Sweep, all_sound
from pipeline.data.safe_paths import inside
from pipeline.data.sample import CAMERAS, MAX_SWEEPS, DataError
from pipeline.json_files import read_json

TABLES = (
    "category",
    "attribute",
    "visibility",
    "instance",
    "sensor",
    "calibrated_sensor",
    "ego_pose",
    "log",
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "map",
)
"""The thirteen tables of a nuScenes version; each is a file ``<table>.json``."""

FULL = "v1.0-trainval"
"""Version of the whole of nuScenes that has boxes."""

BROKEN = (KeyError, ValueError, TypeError, IndexError, AttributeError)
"""Errors of records that have other keys or types than nuScenes'."""

MAX_BYTES = 2**32
"""Largest table that is read; the largest of all of nuScenes has 1.2 GB."""

DAMAGED = "the tables are damaged, restore or generate them anew"
"""Advice in error messages about tables that contradict themselves."""


def read_frames(root: Path, version: str, split: str, max_sweeps: int = MAX_SWEEPS) -> list[FrameRecord]:
    """Read all key frames of a split, scene by scene in order of time.

    Boxes of classes outside the ten are dropped. Image and point files are not opened.

    Args:
        root: dataset root, with the folder ``<version>`` of the tables.
        version: nuScenes version, e.g. ``v1.0-mini``.
        split: split of the official devkit, e.g. ``mini_train``.
        max_sweeps: largest number of earlier scans per frame.

    Raises:
        DataError: a table is missing or broken, or no scene of the split is in this dataset.
    """
    return all_sound(read_each_frame(root, version, split, max_sweeps), str(Path(root) / version))


def read_each_frame(
    root: Path, version: str, split: str, max_sweeps: int = MAX_SWEEPS
) -> Iterator[FrameRecord | DataError]:
    """Yield every key frame of a split, or what is wrong with it; see ``read_frames``."""
    try:
        yield from _read_each(Path(root), version, split, max_sweeps)
    except DataError:
        raise
    except BROKEN as problem:
        told = f"{type(problem).__name__}: {str(problem)[:200]}"
        raise DataError(f"{Path(root) / version}: cannot be read ({told}); {DAMAGED}") from problem


def _read_each(root: Path, version: str, split: str, max_sweeps: int) -> Iterator[FrameRecord | DataError]:
    nusc = open_tables(root, version)
    names = set(split_scenes(split))
    scenes = [scene for scene in nusc.scene if scene["name"] in names]
    if not scenes:
        present = ", ".join(str(scene["name"])[:60] for scene in nusc.scene) or "none"
        raise DataError(
            f"{root / version}: no scene of split {split!r} (scenes here: {present}); choose the split "
            "or the version that belongs to this dataset"
        )
    for scene in scenes:
        for sample in _samples_of(nusc, scene):
            where = f"{root / version}: key frame {str(sample['token'])[:60]} of {scene['name']}"
            try:
                yield _frame(nusc, scene["name"], sample, max_sweeps, where)
            except KeyError as missing:
                yield DataError(f"{where} refers to {str(missing)[:60]}, which no table has; {DAMAGED}")
            except DataError as problem:
                yield problem
            except (ValueError, TypeError, IndexError, AttributeError, np.linalg.LinAlgError) as problem:
                yield DataError(f"{where} cannot be read ({str(problem)[:200]}); {DAMAGED}")


def open_tables(root: Path, version: str) -> Any:
    """Open a dataset as ``nuscenes.NuScenes``.

    Raises:
        DataError: the folder, a table, a map or a referenced record is missing or cannot be read.
    """
    import_devkit()  # here, because it takes a second
    from nuscenes.nuscenes import NuScenes

    folder = root / version
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; expected the nuScenes tables there, check root and version"
        )
    for table in TABLES:
        if not (folder / f"{table}.json").is_file():
            raise DataError(f"{folder / table}.json: table missing; expected all of {', '.join(TABLES)}")
        if (size := (folder / f"{table}.json").stat().st_size) > MAX_BYTES:
            raise DataError(
                f"{folder / table}.json: has {size} bytes, expected {MAX_BYTES} at most; {DAMAGED}"
            )
    try:
        nusc = NuScenes(version=version, dataroot=str(root), verbose=False)
    except KeyError as missing:
        raise DataError(
            f"{folder}: a record refers to {str(missing)[:60]}, which no table has; {DAMAGED}"
        ) from missing
    except (*BROKEN, AssertionError, OSError, RecursionError) as problem:
        told = str(problem)[:200]
        raise DataError(f"{folder}: the devkit cannot open these tables ({told}); {DAMAGED}") from problem
    _check_categories(nusc, folder)
    return nusc


def find_version(root: Path, prefer: str = "") -> str:
    """Return the version of the tables that a dataset holds.

    Args:
        root: dataset root.
        prefer: version to take if the dataset has it; else the full one, else the only or first one.

    Raises:
        DataError: it holds no tables.
    """
    there = sorted(path.parent.name for path in Path(root).glob("v*/sample.json"))
    if not there:
        raise DataError(
            f"{root}: no tables; expected a folder such as {FULL} in it, with {TABLES[0]}.json and the others"
        )
    return next((version for version in (prefer, FULL) if version in there), there[0])


def count_frames(root: Path, version: str, split: str) -> int:
    """Return how many key frames a split has, by the table of scenes alone.

    Raises:
        DataError: the table is missing or broken, or has no scene of the split.
    """
    path = Path(root) / version / "scene.json"
    try:
        scenes = read_json(path, list)
        names = set(split_scenes(split))
        count = sum(int(scene["nbr_samples"]) for scene in scenes if scene["name"] in names)
    except (FileNotFoundError, *BROKEN) as problem:  # a JsonError is a ValueError
        raise DataError(f"{path}: cannot be read ({problem}); {DAMAGED}") from problem
    if not count:
        raise DataError(f"{path}: no scene of split {split!r}; choose the dataset that has it")
    return count


def split_scenes(split: str) -> list[str]:
    """Return the scene names of a split of the official devkit; DataError if there is none."""
    import_devkit()
    from nuscenes.utils.splits import create_splits_scenes

    splits: dict[str, list[str]] = create_splits_scenes()
    if split not in splits:
        raise DataError(f"unknown split {split!r}; the devkit has {', '.join(splits)}")
    return splits[split]


def _check_categories(nusc: Any, folder: Path) -> None:
    """Refuse a category that nuScenes does not have, because its boxes would be dropped silently."""
    from nuscenes.utils.color_map import get_colormap

    known = set(get_colormap())
    for category in nusc.category:
        if category["name"] not in known:
            raise DataError(
                f"{folder / 'category.json'}: unknown class {sensors.show(category['name'])}; expected "
                "category names of nuScenes, such as 'vehicle.car'"
            )


def _samples_of(nusc: Any, scene: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the linked samples of a scene; DataError if the chain ends early or has a circle."""
    samples: dict[str, dict[str, Any]] = {}
    token = scene["first_sample_token"]
    wanted = scene["nbr_samples"]
    if not isinstance(wanted, int):
        raise sensors.wrong(f"{nusc.table_root}/scene.json", "nbr_samples", wanted, "a whole number")
    while token and token not in samples and len(samples) < wanted:
        try:
            samples[token] = nusc.get("sample", token)
        except KeyError as missing:
            raise DataError(
                f"{nusc.table_root}/sample.json: {scene['name']} refers to sample {str(token)[:60]}, which "
                "is missing"
            ) from missing
        token = samples[token]["next"]
    if token or len(samples) != wanted:
        more = " in a circle" if token in samples else " and more" if token else ""
        raise DataError(
            f"{nusc.table_root}/sample.json: {scene['name']} should have {wanted} linked "
            f"samples, found {len(samples)}{more}; {DAMAGED}"
        )
    return list(samples.values())


def _frame(nusc: Any, scene: str, sample: dict[str, Any], max_sweeps: int, where: str) -> FrameRecord:
    root = Path(nusc.dataroot)
    scan = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    lidar2ego = _lidar2ego(nusc, scan, where)
    ego2global = _pose(nusc.get("ego_pose", scan["ego_pose_token"]), where, "ego_pose of LIDAR_TOP")
    lidar2global = ego2global @ lidar2ego
    cameras = [_camera(nusc, sample, camera, lidar2global, where) for camera in CAMERAS]
    return FrameRecord(
        token=sample["token"],
        scene=scene,
        timestamp_us=sensors.microseconds(scan["timestamp"], where, "sample_data.timestamp", 1),
        image_paths=tuple(path for path, _, _ in cameras),
        cam2img=np.stack([inner for _, inner, _ in cameras]),
        lidar2cam=np.stack([outer for _, _, outer in cameras]),
        lidar_path=inside(root, scan["filename"], f"{nusc.table_root}/sample_data"),
        sweeps=_sweeps(nusc, scan, lidar2global, max_sweeps, where),
        lidar2ego=lidar2ego,
        ego2global=ego2global,
        columns=sensors.columns(scan.get("num_pts_feats"), where, "sample_data.num_pts_feats"),
        root=root,
        **_annotations(nusc, sample, lidar2global, where),
    )


def _camera(
    nusc: Any, sample: dict[str, Any], camera: str, lidar2global: NDArray[np.float64], where: str
) -> tuple[Path | None, NDArray[np.float64], NDArray[np.float64]]:
    """Return path, intrinsic and extrinsic matrix of a camera; no path if the frame has no such camera."""
    if sample["data"].get(camera) is None:
        return None, np.eye(3), np.eye(4)
    shot = nusc.get("sample_data", sample["data"][camera])
    inner = nusc.get("calibrated_sensor", shot["calibrated_sensor_token"])["camera_intrinsic"]
    return (
        inside(Path(nusc.dataroot), shot["filename"], f"{nusc.table_root}/sample_data"),
        sensors.intrinsic(inner, where, f"camera_intrinsic of {camera}"),
        np.linalg.inv(_sensor2global(nusc, shot, where, camera)) @ lidar2global,
    )


def _annotations(
    nusc: Any, sample: dict[str, Any], lidar2global: NDArray[np.float64], where: str
) -> dict[str, NDArray[Any]]:
    """Return boxes, labels, num_points and valid of one sample as ``FrameRecord`` has them."""
    from nuscenes.eval.detection.utils import category_to_detection_name

    global2lidar = np.linalg.inv(lidar2global)
    rows, labels, lidar, radar = [], [], [], []
    named: list[str] = []
    for token in sample["anns"]:
        annotation = nusc.get("sample_annotation", token)
        name = category_to_detection_name(annotation["category_name"])
        if name is None:
            continue
        named.append(f"box {len(named)} ({name})")
        field = f"{named[-1]} sample_annotation"
        pose = sensors.pose(annotation["rotation"], annotation["translation"], where, field)
        centre = global2lidar @ pose[:, 3]
        turn = global2lidar[:3, :3] @ pose[:3, :3]
        velocity = global2lidar[:2, :2] @ nusc.box_velocity(token)[:2]
        width, length, height = sensors.numbers(annotation["size"], where, f"{field} size", (3,))
        yaw = np.arctan2(turn[1, 0], turn[0, 0])
        rows.append([*centre[:3], length, width, height, yaw, *velocity])
        labels.append(CLASSES.index(name))
        lidar.append(annotation["num_lidar_pts"])
        radar.append(annotation.get("num_radar_pts", 0))
    num_points = sensors.point_counts(lidar, where, "num_lidar_pts")
    return {
        "boxes": sensors.boxes(rows, where, named),
        "labels": np.array(labels, np.int64),
        "num_points": num_points,
        "valid": num_points + sensors.point_counts(radar, where, "num_radar_pts") > 0,
    }


def _sweeps(
    nusc: Any, scan: dict[str, Any], lidar2global: NDArray[np.float64], limit: int, where: str
) -> tuple[Sweep, ...]:
    """Return the earlier scans, nearest first, with earlier key frames among them as in mmdet3d's converter.

    In a dataset with key frames only, the previous scan is half a second old and is not a sweep.
    """
    sweeps: list[Sweep] = []
    earlier = scan
    while earlier["prev"] and len(sweeps) < limit:
        earlier = nusc.get("sample_data", earlier["prev"])
        if earlier["is_key_frame"] and not sweeps:
            break
        name = f"sweep {len(sweeps)}"
        sweeps.append(
            Sweep(
                path=inside(Path(nusc.dataroot), earlier["filename"], f"{nusc.table_root}/sample_data"),
                lidar2sensor=np.linalg.inv(_sensor2global(nusc, earlier, where, name)) @ lidar2global,
                lag_s=sensors.lag(scan["timestamp"], earlier["timestamp"], where, f"timestamp of {name}"),
                columns=sensors.columns(earlier.get("num_pts_feats"), where, f"num_pts_feats of {name}"),
            )
        )
    return tuple(sweeps)


def _lidar2ego(nusc: Any, scan: dict[str, Any], where: str) -> NDArray[np.float64]:
    record = nusc.get("calibrated_sensor", scan["calibrated_sensor_token"])
    return _pose(record, where, "calibrated_sensor of LIDAR_TOP")


def _sensor2global(nusc: Any, data: dict[str, Any], where: str, name: str) -> NDArray[np.float64]:
    sensor = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
    ego = _pose(nusc.get("ego_pose", data["ego_pose_token"]), where, f"ego_pose of {name}")
    return ego @ _pose(sensor, where, f"calibrated_sensor of {name}")


def _pose(record: dict[str, Any], where: str, field: str) -> NDArray[np.float64]:
    """Return the (4, 4) transform of a record with ``rotation`` (w, x, y, z) and ``translation``."""
    return sensors.pose(record["rotation"], record["translation"], where, field)
