"""Reads the key frames of a nuScenes split through the official devkit."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.settings import CLASSES
from pipeline.data.formats.frame_record import FrameRecord, Sweep
from pipeline.data.safe_paths import inside
from pipeline.data.sample import CAMERAS, MAX_SWEEPS, DataError

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
    nusc = open_tables(Path(root), version)
    names = set(split_scenes(split))
    scenes = [scene for scene in nusc.scene if scene["name"] in names]
    if not scenes:
        present = ", ".join(scene["name"] for scene in nusc.scene) or "none"
        raise DataError(
            f"{Path(root) / version}: no scene of split {split!r} (scenes here: {present}); choose the split "
            "or the version that belongs to this dataset"
        )
    frames = []
    for scene in scenes:
        for sample in _samples_of(nusc, scene):
            try:
                frames.append(_frame(nusc, scene["name"], sample, max_sweeps))
            except KeyError as missing:
                raise DataError(
                    f"{Path(root) / version}: key frame {sample['token']} of {scene['name']} refers to "
                    f"{missing}, which no table has; {DAMAGED}"
                ) from missing
            except DataError:
                raise
            except (ValueError, TypeError, IndexError, np.linalg.LinAlgError) as problem:
                raise DataError(
                    f"{Path(root) / version}: key frame {sample['token']} of {scene['name']} has a pose, a "
                    f"calibration or a box that cannot be read ({problem}); {DAMAGED}"
                ) from problem
    return frames


def open_tables(root: Path, version: str) -> Any:
    """Open a dataset as ``nuscenes.NuScenes``.

    Raises:
        DataError: the folder, a table, a map or a referenced record is missing or cannot be read.
    """
    from nuscenes.nuscenes import NuScenes  # imported here, because it takes seconds

    folder = root / version
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; expected the nuScenes tables there, check root and version"
        )
    for table in TABLES:
        if not (folder / f"{table}.json").is_file():
            raise DataError(f"{folder / table}.json: table missing; expected all of {', '.join(TABLES)}")
    try:
        nusc = NuScenes(version=version, dataroot=str(root), verbose=False)
    except KeyError as missing:
        raise DataError(f"{folder}: a record refers to {missing}, which no table has; {DAMAGED}") from missing
    except (ValueError, TypeError, IndexError, AssertionError, OSError) as problem:
        raise DataError(f"{folder}: the devkit cannot open these tables ({problem}); {DAMAGED}") from problem
    _check_categories(nusc, folder)
    return nusc


def split_scenes(split: str) -> list[str]:
    """Return the scene names of a split of the official devkit; DataError if there is none."""
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
                f"{folder / 'category.json'}: unknown class {category['name']!r}; expected category names "
                "of nuScenes, such as 'vehicle.car'"
            )


def _samples_of(nusc: Any, scene: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the linked samples of a scene; DataError if the chain ends early or has a circle."""
    samples: list[dict[str, Any]] = []
    token = scene["first_sample_token"]
    while token:
        if len(samples) >= scene["nbr_samples"]:
            break
        try:
            samples.append(nusc.get("sample", token))
        except KeyError as missing:
            raise DataError(
                f"{nusc.table_root}/sample.json: {scene['name']} refers to sample {token}, which is missing"
            ) from missing
        token = samples[-1]["next"]
    if token or len(samples) != scene["nbr_samples"]:
        raise DataError(
            f"{nusc.table_root}/sample.json: {scene['name']} should have {scene['nbr_samples']} linked "
            f"samples, found {len(samples)}{' and more' if token else ''}; {DAMAGED}"
        )
    return samples


def _frame(nusc: Any, scene: str, sample: dict[str, Any], max_sweeps: int) -> FrameRecord:
    root = Path(nusc.dataroot)
    scan = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    lidar2ego = _matrix(nusc.get("calibrated_sensor", scan["calibrated_sensor_token"]))
    ego2global = _matrix(nusc.get("ego_pose", scan["ego_pose_token"]))
    lidar2global = ego2global @ lidar2ego
    shots = [nusc.get("sample_data", sample["data"][camera]) for camera in CAMERAS]
    boxes, labels, num_points = _annotations(nusc, sample, lidar2global)
    return FrameRecord(
        token=sample["token"],
        scene=scene,
        timestamp_us=int(scan["timestamp"]),
        image_paths=tuple(inside(root, shot["filename"], f"{nusc.table_root}/sample_data") for shot in shots),
        cam2img=np.stack([_intrinsic(nusc, shot) for shot in shots]),
        lidar2cam=np.stack([np.linalg.inv(_sensor2global(nusc, shot)) @ lidar2global for shot in shots]),
        lidar_path=inside(root, scan["filename"], f"{nusc.table_root}/sample_data"),
        sweeps=_sweeps(nusc, scan, lidar2global, max_sweeps),
        lidar2ego=lidar2ego,
        ego2global=ego2global,
        boxes=boxes,
        labels=labels,
        num_points=num_points,
        root=root,
    )


def _annotations(
    nusc: Any, sample: dict[str, Any], lidar2global: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Return boxes (M, 9), labels (M,) and point counts (M,) of one sample, for the ten classes."""
    from nuscenes.eval.detection.utils import category_to_detection_name

    global2lidar = np.linalg.inv(lidar2global)
    rows, labels, counts = [], [], []
    for token in sample["anns"]:
        annotation = nusc.get("sample_annotation", token)
        name = category_to_detection_name(annotation["category_name"])
        if name is None:
            continue
        centre = global2lidar @ np.array([*annotation["translation"], 1.0])
        turn = global2lidar[:3, :3] @ _rotation(annotation["rotation"])
        velocity = global2lidar[:2, :2] @ nusc.box_velocity(token)[:2]
        width, length, height = annotation["size"]
        yaw = np.arctan2(turn[1, 0], turn[0, 0])
        rows.append([*centre[:3], length, width, height, yaw, *velocity])
        labels.append(CLASSES.index(name))
        counts.append(int(annotation["num_lidar_pts"]))
    return (
        np.array(rows, np.float32).reshape(-1, 9),
        np.array(labels, np.int64),
        np.array(counts, np.int64),
    )


def _sweeps(
    nusc: Any, scan: dict[str, Any], lidar2global: NDArray[np.float64], limit: int
) -> tuple[Sweep, ...]:
    """Return the earlier scans, nearest first, with earlier key frames among them as in mmdet3d's converter.

    In a dataset with key frames only, the previous scan is half a second old and is not a sweep.
    """
    global2lidar = np.linalg.inv(lidar2global)
    sweeps: list[Sweep] = []
    earlier = scan
    while earlier["prev"] and len(sweeps) < limit:
        earlier = nusc.get("sample_data", earlier["prev"])
        if earlier["is_key_frame"] and not sweeps:
            break
        sweeps.append(
            Sweep(
                path=inside(Path(nusc.dataroot), earlier["filename"], f"{nusc.table_root}/sample_data"),
                to_key=global2lidar @ _sensor2global(nusc, earlier),
                lag_s=(scan["timestamp"] - earlier["timestamp"]) * 1e-6,  # microseconds to seconds
            )
        )
    return tuple(sweeps)


def _intrinsic(nusc: Any, shot: dict[str, Any]) -> NDArray[np.float64]:
    sensor = nusc.get("calibrated_sensor", shot["calibrated_sensor_token"])
    return _finite(np.array(sensor["camera_intrinsic"], np.float64).reshape(3, 3))


def _sensor2global(nusc: Any, data: dict[str, Any]) -> NDArray[np.float64]:
    sensor = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
    return _matrix(nusc.get("ego_pose", data["ego_pose_token"])) @ _matrix(sensor)


def _matrix(pose: dict[str, Any]) -> NDArray[np.float64]:
    """Return the (4, 4) transform of a record with ``rotation`` (w, x, y, z) and ``translation``."""
    made = np.eye(4)
    made[:3, :3] = _rotation(pose["rotation"])
    made[:3, 3] = pose["translation"]
    return _finite(made)


def _finite(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(matrix).all():
        raise ValueError(f"not finite: {matrix.tolist()}")
    return matrix


def _rotation(quaternion: list[float]) -> NDArray[np.float64]:
    from pyquaternion import Quaternion

    turn: NDArray[np.float64] = Quaternion(quaternion).rotation_matrix
    return turn
