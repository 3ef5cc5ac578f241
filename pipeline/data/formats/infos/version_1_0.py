"""Frames of info files of format 1.0 (mmdet3d 1.0, with which CMT and MoME were trained).

Poses are quaternions and shifts as in the tables, and objects are columns. mmdet3d before 1.0 wrote the same
keys with width and length exchanged and another yaw; such a file is recognised by its cars, and refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.settings import CLASSES
from pipeline.data import sensors
from pipeline.data.formats.frame_record import FrameRecord, Sweep
from pipeline.data.formats.infos.parts import LIDAR, Content, Objects, ReadFrame, read_token, refuse_foreign
from pipeline.data.sample import CAMERAS, DataError

ROUNDED = 1e-2
"""Largest difference, in m and in entries of the rotation, between ``sensor2lidar`` and the poses of which it
was made. Rounding is far below it, another frame far above."""


def read_1_0(file: Content) -> ReadFrame:
    """Return the reader of the frames of a file; DataError if it names none of the ten classes."""
    infos = [info for info in file.content["infos"] if isinstance(info, dict)]
    named = {str(name) for info in infos for name in np.ravel(info.get("gt_names", ()))[:1000]}
    refuse_foreign(file.path, sorted(named))
    _refuse_before_1_0(infos, file)
    meta = file.content.get("metadata")
    version = meta.get("version", file.path.stem) if isinstance(meta, dict) else file.path.stem
    scene = sensors.show(version).strip("'")
    return lambda info: _frame(info, file, scene)


def _refuse_before_1_0(infos: Sequence[Mapping[str, Any]], file: Content) -> None:
    """Refuse boxes in the order width, length, height: cars are longer than wide."""
    lengths, widths = [], []
    for info in infos:
        names, sizes = np.ravel(info.get("gt_names", ())), np.array(info.get("gt_boxes", ()))
        if sizes.ndim == 2 and sizes.shape[1] >= 5 and len(sizes) == len(names):
            lengths += sizes[names == "car", 3].tolist()
            widths += sizes[names == "car", 4].tolist()
    if lengths and np.median(lengths) < np.median(widths):
        raise DataError(
            f"{file.path}: its cars are {np.median(lengths):.1f} m long, {np.median(widths):.1f} m wide: "
            "gt_boxes have width and length exchanged, as mmdet3d before 1.0 wrote them; make it with 1.0"
        )


def _frame(info: Mapping[str, Any], file: Content, scene: str) -> FrameRecord:
    token = read_token(info)
    where = f"frame {token}"
    stated = sensors.columns(info.get("num_features"), where, "num_features")
    sweeps = info.get("sweeps") or ()
    time_us = sensors.microseconds(info.get("timestamp", None if sweeps else 0), where, "timestamp", 1)
    lidar2ego = _pose(info, "lidar2ego", where)
    ego2global = _pose(info, "ego2global", where)
    lidar2global = ego2global @ lidar2ego
    cameras = [
        _camera(info.get("cams", {}).get(camera), (where, camera), lidar2global, file) for camera in CAMERAS
    ]
    return FrameRecord(
        token=token,
        scene=str(info.get("scene_name", scene))[:200],
        timestamp_us=time_us,
        image_paths=tuple(path for path, _, _ in cameras),
        cam2img=np.array([inner for _, inner, _ in cameras]),
        lidar2cam=np.array([outer for _, _, outer in cameras]),
        lidar_path=file.locate(info["lidar_path"], LIDAR),
        sweeps=tuple(
            _sweep(sweep, (where, f"sweeps[{index}]"), (lidar2global, time_us, stated), file)
            for index, sweep in enumerate(sweeps)
        ),
        lidar2ego=lidar2ego,
        ego2global=ego2global,
        columns=stated,
        root=file.root,
        **_objects(info, file, where).columns(where),
    )


def _pose(entry: Mapping[str, Any], name: str, where: str) -> NDArray[np.float64]:
    rotation, translation = entry.get(f"{name}_rotation"), entry.get(f"{name}_translation")
    return sensors.pose(rotation, translation, where, name)


def _lidar2sensor(
    entry: Mapping[str, Any], place: tuple[str, str], lidar2global: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return key frame's LiDAR -> sensor.

    It is made of the sensor's poses as for tables. ``sensor2lidar``, which mmdet3d reads, must be the same up
    to rounding; where the poses are missing, it is taken.
    """
    where, field = place
    made = None
    if entry.get("sensor2lidar_rotation") is not None:
        wide = np.eye(4)
        rotation = entry["sensor2lidar_rotation"]
        wide[:3, :3] = sensors.numbers(rotation, where, f"{field}.sensor2lidar_rotation", (3, 3))
        shift = entry.get("sensor2lidar_translation")
        wide[:3, 3] = sensors.numbers(shift, where, f"{field}.sensor2lidar_translation", (3,))
        made = np.linalg.inv(sensors.transform(wide, where, f"{field}.sensor2lidar"))
    if made is not None and (
        entry.get("sensor2ego_rotation") is None or entry.get("ego2global_rotation") is None
    ):
        return np.asarray(made, np.float64)
    sensor2ego, ego2global = _pose(entry, "sensor2ego", where), _pose(entry, "ego2global", where)
    posed = np.linalg.inv(ego2global @ sensor2ego) @ lidar2global
    if made is not None and np.abs(posed - made).max() > ROUNDED:
        raise DataError(
            f"{where}: {field}.sensor2lidar differs from its poses by {np.abs(posed - made).max():.2g}; "
            "expected one calibration, make the file anew"
        )
    return np.asarray(posed, np.float64)


def _camera(
    shot: Any, place: tuple[str, str], lidar2global: NDArray[np.float64], file: Content
) -> tuple[Any, Any, Any]:
    """Return path, intrinsic and extrinsic matrix of a camera; no path if the frame has no such camera."""
    where, camera = place
    if not isinstance(shot, dict) or shot.get("data_path") is None:
        return None, np.eye(3), np.eye(4)
    return (
        file.locate(shot["data_path"], camera),
        sensors.intrinsic(shot.get("cam_intrinsic"), where, f"{camera}.cam_intrinsic"),
        _lidar2sensor(shot, place, lidar2global),
    )


def _sweep(
    sweep: Mapping[str, Any],
    place: tuple[str, str],
    key: tuple[NDArray[np.float64], int, int | None],
    file: Content,
) -> Sweep:
    where, field = place
    lidar2global, time_us, stated = key
    scanned_us = sensors.microseconds(sweep.get("timestamp"), where, f"{field}.timestamp", 1)
    own = sensors.columns(sweep.get("num_features"), where, f"{field}.num_features")
    return Sweep(
        path=file.locate(sweep["data_path"], LIDAR, "sweeps"),
        lidar2sensor=_lidar2sensor(sweep, place, lidar2global),
        lag_s=sensors.lag(time_us, scanned_us, where, f"{field}.timestamp"),
        columns=own or stated,
    )


def _objects(info: Mapping[str, Any], file: Content, where: str) -> Objects:
    """Read the objects of the ten classes.

    ``gt_boxes`` are x, y, z of the centre, length, width, height, yaw in the LiDAR frame.
    """
    names = [str(name) for name in np.ravel(info.get("gt_names", ()))]
    count = len(names)
    rows: NDArray[np.float64] = np.zeros((0, 7))
    if count:
        rows = sensors.numbers(info.get("gt_boxes"), where, "gt_boxes", (count, 7))
    velocity = info.get("gt_velocity")
    speeds = (
        np.full((count, 2), np.nan) if velocity is None else np.array(velocity, np.float64).reshape(-1, 2)
    )
    columns = [_column(info, key, count, where) for key in ("num_lidar_pts", "num_radar_pts", "valid_flag")]
    if len(speeds) != count:
        raise sensors.wrong(where, "gt_velocity", velocity, f"{count} velocities, one for each of gt_names")
    made = Objects([], [], [], [], [])
    for index, name in enumerate(names):
        if name not in CLASSES:
            file.others[name[:60]] += 1
            continue
        made.rows.append([*rows[index], *speeds[index]])
        made.names.append(name)
        for part, column in zip((made.lidar, made.radar, made.flags), columns, strict=True):
            part.append(column[index])
    return made


def _column(info: Mapping[str, Any], key: str, count: int, where: str) -> list[Any]:
    """Return a column of the objects; Nones if the file has none."""
    values = info.get(key)
    if values is None:
        return [None] * count
    made = list(np.ravel(values))
    if len(made) != count:
        raise sensors.wrong(where, key, values, f"{count} values, one for each of gt_names")
    return made
