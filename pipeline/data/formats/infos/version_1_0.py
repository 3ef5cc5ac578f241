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
from pipeline.data.formats.infos.frame_reader import NO_SHOT, EarlierScan, FrameReader, Shot
from pipeline.data.formats.infos.parts import Content, Objects, ReadFrame, refuse_foreign
from pipeline.data.sample import DataError

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
    return lambda info: _Frame(info, file, scene).record()


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


class _Frame(FrameReader):
    """A frame of format 1.0."""

    sweeps_at = "sweeps"
    per_unit = 1

    def __init__(self, info: Mapping[str, Any], file: Content, scene: str) -> None:
        super().__init__(info, file, scene)
        self._lidar2ego = self._pose(info, "lidar2ego")
        self._ego2global = self._pose(info, "ego2global")
        self._lidar2global = self._ego2global @ self._lidar2ego

    def scan(self) -> tuple[Any, int | None]:
        return self.info["lidar_path"], self._columns(self.info, "num_features")

    def poses(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._lidar2ego, self._ego2global

    def shot(self, camera: str) -> Shot:
        shot = self.info.get("cams", {}).get(camera)
        if not isinstance(shot, dict) or shot.get("data_path") is None:
            return NO_SHOT
        return Shot(
            self.file.locate(shot["data_path"], camera),
            sensors.intrinsic(shot.get("cam_intrinsic"), self.where, f"{camera}.cam_intrinsic"),
            self._lidar2sensor(shot, camera),
        )

    def earlier_scan(self, sweep: Mapping[str, Any], field: str) -> EarlierScan:
        columns = self._columns(sweep, f"{field}.num_features")
        return EarlierScan(sweep["data_path"], self._lidar2sensor(sweep, field), columns)

    def objects(self) -> Objects:
        """Return the objects of the ten classes.

        ``gt_boxes`` are x, y, z of the centre, length, width, height, yaw in the LiDAR frame.
        """
        info, where = self.info, self.where
        names = [str(name) for name in np.ravel(info.get("gt_names", ()))]
        count = len(names)
        rows: NDArray[np.float64] = np.zeros((0, 7))
        if count:
            rows = sensors.numbers(info.get("gt_boxes"), where, "gt_boxes", (count, 7))
        given = info.get("gt_velocity")
        speeds = np.full((count, 2), np.nan) if given is None else np.array(given, np.float64).reshape(-1, 2)
        if len(speeds) != count:
            raise sensors.wrong(where, "gt_velocity", given, f"{count} velocities, one for each of gt_names")
        keys = ("num_lidar_pts", "num_radar_pts", "valid_flag")
        columns = [_column(info, key, count, where) for key in keys]
        made = Objects([], [], [], [], [])
        for index, name in enumerate(names):
            if name not in CLASSES:
                self.file.others[name[:60]] += 1
                continue
            made.rows.append([*rows[index], *speeds[index]])
            made.names.append(name)
            for part, column in zip((made.lidar, made.radar, made.flags), columns, strict=True):
                part.append(column[index])
        return made

    def _columns(self, entry: Mapping[str, Any], field: str) -> int | None:
        return sensors.columns(entry.get("num_features"), self.where, field)

    def _pose(self, entry: Mapping[str, Any], name: str) -> NDArray[np.float64]:
        rotation, translation = entry.get(f"{name}_rotation"), entry.get(f"{name}_translation")
        return sensors.pose(rotation, translation, self.where, name)

    def _lidar2sensor(self, entry: Mapping[str, Any], field: str) -> NDArray[np.float64]:
        """Return key frame's LiDAR -> sensor.

        It is made of the sensor's poses as for tables. ``sensor2lidar``, which mmdet3d reads, must be the
        same up to rounding; where the poses are missing, it is taken.
        """
        where, made = self.where, None
        if entry.get("sensor2lidar_rotation") is not None:
            wide = np.eye(4)
            rotation, shift = entry["sensor2lidar_rotation"], entry.get("sensor2lidar_translation")
            wide[:3, :3] = sensors.numbers(rotation, where, f"{field}.sensor2lidar_rotation", (3, 3))
            wide[:3, 3] = sensors.numbers(shift, where, f"{field}.sensor2lidar_translation", (3,))
            made = np.linalg.inv(sensors.transform(wide, where, f"{field}.sensor2lidar"))
            if entry.get("sensor2ego_rotation") is None or entry.get("ego2global_rotation") is None:
                return np.asarray(made, np.float64)
        sensor2ego, ego2global = self._pose(entry, "sensor2ego"), self._pose(entry, "ego2global")
        posed = np.linalg.inv(ego2global @ sensor2ego) @ self._lidar2global
        if made is not None and np.abs(posed - made).max() > ROUNDED:
            raise DataError(
                f"{where}: {field}.sensor2lidar differs from its poses by {np.abs(posed - made).max():.2g}; "
                "expected one calibration, make the file anew"
            )
        return np.asarray(posed, np.float64)


def _column(info: Mapping[str, Any], key: str, count: int, where: str) -> list[Any]:
    """Return a column of the objects; Nones if the file has none."""
    values = info.get(key)
    if values is None:
        return [None] * count
    made = list(np.ravel(values))
    if len(made) != count:
        raise sensors.wrong(where, key, values, f"{count} values, one for each of gt_names")
    return made
