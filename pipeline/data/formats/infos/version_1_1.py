"""Frames of info files of format 1.1 (mmdet3d 1.1 and later): matrices, and one entry per object."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.config.settings import CLASSES
from pipeline.data import sensors
from pipeline.data.formats.frame_record import FrameRecord, Sweep
from pipeline.data.formats.infos.parts import (
    LIDAR,
    MICROSECONDS,
    Content,
    Objects,
    ReadFrame,
    read_token,
    refuse_foreign,
)
from pipeline.data.safe_pickle import MAKE
from pipeline.data.sample import CAMERAS, DataError

MMDET3D_CLASSES = (
    "car",
    "truck",
    "trailer",
    "bus",
    "construction_vehicle",
    "bicycle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "barrier",
)
"""The order in which mmdet3d's NuScenesDataset numbers the classes of info files that name none."""

IGNORED = -1
"""Label of objects that are of none of the classes."""


def read_1_1(file: Content) -> ReadFrame:
    """Return the reader of the frames of a file; DataError if it is of another version or other classes."""
    meta = file.content.get("metainfo", {})
    version = meta.get("info_version", "1.1") if isinstance(meta, dict) else meta
    if version != "1.1" or "data_list" not in file.content:
        raise DataError(
            f"{file.path}: info version {sensors.show(version)} with {sensors.show(sorted(file.content))}; "
            f"expected 1.1 with data_list, or infos of 1.0; {MAKE}"
        )
    categories = meta.get("categories", {name: label for label, name in enumerate(MMDET3D_CLASSES)})
    if not isinstance(categories, dict):
        raise sensors.wrong(str(file.path), "metainfo.categories", categories, "names of classes with labels")
    refuse_foreign(file.path, [str(name) for name in categories])
    names = {label: str(name) for name, label in categories.items()}
    scene = str(sensors.show(meta.get("version", file.path.stem))).strip("'")
    return lambda info: _frame(info, file, names, scene)


def _frame(info: Mapping[str, Any], file: Content, names: Mapping[Any, str], scene: str) -> FrameRecord:
    token = read_token(info)
    where = f"frame {token}"
    lidar = info["lidar_points"]
    stated = sensors.columns(lidar.get("num_pts_feats"), where, "lidar_points.num_pts_feats")
    sweeps = info.get("lidar_sweeps") or ()
    given = info.get("timestamp", None if sweeps else 0)  # without sweeps nobody asks for the time
    time_us = sensors.microseconds(given, where, "timestamp", MICROSECONDS)
    images = info["images"]
    cameras = [_camera(images.get(camera), where, camera, file) for camera in CAMERAS]
    return FrameRecord(
        token=token,
        scene=str(info.get("scene_name", scene))[:200],
        timestamp_us=time_us,
        image_paths=tuple(path for path, _, _ in cameras),
        cam2img=np.array([inner for _, inner, _ in cameras]),
        lidar2cam=np.array([outer for _, _, outer in cameras]),
        lidar_path=file.locate(lidar["lidar_path"], LIDAR),
        sweeps=tuple(
            _sweep(sweep, time_us, (where, f"lidar_sweeps[{index}]"), stated, file)
            for index, sweep in enumerate(sweeps)
        ),
        lidar2ego=_pose(lidar.get("lidar2ego"), where, "lidar_points.lidar2ego"),
        ego2global=_pose(info.get("ego2global"), where, "ego2global"),
        columns=stated,
        root=file.root,
        **_objects(info.get("instances") or (), names, file, where).columns(where),
    )


def _pose(value: Any, where: str, field: str) -> Any:
    """Return a pose. mmdet3d's loaders ask for none; only the evaluation does, and it reads the tables."""
    return np.eye(4) if value is None else sensors.transform(value, where, field)


def _camera(shot: Any, where: str, camera: str, file: Content) -> tuple[Any, Any, Any]:
    """Return path, intrinsic and extrinsic matrix of a camera; no path if the frame has no such camera."""
    if not isinstance(shot, dict) or shot.get("img_path") is None:
        return None, np.eye(3), np.eye(4)
    return (
        file.locate(shot["img_path"], camera),
        sensors.intrinsic(shot.get("cam2img"), where, f"{camera}.cam2img"),
        sensors.transform(shot.get("lidar2cam"), where, f"{camera}.lidar2cam"),
    )


def _sweep(
    sweep: Mapping[str, Any], time_us: int, place: tuple[str, str], stated: int | None, file: Content
) -> Sweep:
    """Read one earlier scan.

    ``lidar2sensor`` maps the key frame to the sweep; its inverse maps the sweep's points. (mmdet3d 1.4's
    LoadPointsFromMultiSweeps subtracts the shift without rotating it, which is an error.)
    """
    where, field = place
    lidar = sweep["lidar_points"]
    own = sensors.columns(lidar.get("num_pts_feats"), where, f"{field}.num_pts_feats")
    scanned_us = sensors.microseconds(sweep.get("timestamp"), where, f"{field}.timestamp", MICROSECONDS)
    return Sweep(
        path=file.locate(lidar["lidar_path"], LIDAR, "sweeps"),
        lidar2sensor=sensors.transform(lidar.get("lidar2sensor"), where, f"{field}.lidar2sensor"),
        lag_s=sensors.lag(time_us, scanned_us, where, f"{field}.timestamp"),
        columns=own or stated,
    )


def _objects(instances: Any, names: Mapping[Any, str], file: Content, where: str) -> Objects:
    """Read the objects of the ten classes.

    ``bbox_3d`` is x, y, z, length, width, height, yaw in the LiDAR frame. z is at the centre of the box,
    because mmdet3d's NuScenesDataset reads it with origin (0.5, 0.5, 0.5).
    """
    made = Objects([], [], [], [], [])
    for index, instance in enumerate(instances):
        label = instance["bbox_label_3d"]
        if label == IGNORED:
            continue
        if not isinstance(label, int | np.integer) or label not in names:
            raise sensors.wrong(where, f"instances[{index}].bbox_label_3d", label, "a label of categories")
        if names[label] not in CLASSES:
            file.others[names[label][:60]] += 1
            continue
        unknown = (np.nan, np.nan)
        try:
            made.rows.append([*instance["bbox_3d"], *instance.get("velocity", unknown)])
        except TypeError as problem:
            raise sensors.wrong(where, f"instances[{index}]", instance, "bbox_3d and velocity") from problem
        made.names.append(names[label])
        made.lidar.append(instance.get("num_lidar_pts"))
        made.radar.append(instance.get("num_radar_pts"))
        made.flags.append(instance.get("bbox_3d_isvalid"))
    return made
