"""Makes the record of a frame of an info file; the formats say where they keep its parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data import sensors
from pipeline.data.formats.frame_record import FrameRecord, Sweep
from pipeline.data.formats.infos.parts import LIDAR, Content, Objects, read_token
from pipeline.data.sample import CAMERAS


class Shot(NamedTuple):
    """A camera's image: its file, None if the frame has none, and its calibration."""

    path: Path | None
    cam2img: NDArray[np.float64]
    lidar2cam: NDArray[np.float64]


NO_SHOT = Shot(None, np.eye(3), np.eye(4))


class EarlierScan(NamedTuple):
    """A sweep: name of its file, key frame's LiDAR -> its own, numbers per point if they are stated."""

    name: Any
    lidar2sensor: NDArray[np.float64]
    columns: int | None


class FrameReader:
    """A frame of an info file that is being read.

    Args:
        info: the frame.
        file: the info file.
        scene: name of its scene, if the frame has none.

    Attributes:
        where: the frame, for error messages.
    """

    sweeps_at: ClassVar[str]
    """Key of the sweeps."""

    per_unit: ClassVar[float]
    """Microseconds in the unit of times."""

    def __init__(self, info: Mapping[str, Any], file: Content, scene: str) -> None:
        self.info, self.file, self._scene = info, file, scene
        self.token = read_token(info)
        self.where = f"frame {self.token}"
        self._sweeps = info.get(self.sweeps_at) or ()
        given = info.get("timestamp", None if self._sweeps else 0)  # without sweeps nobody asks for the time
        self._time_us = sensors.microseconds(given, self.where, "timestamp", self.per_unit)

    def record(self) -> FrameRecord:
        """Return the record of the frame; DataError names a value that cannot be used."""
        name, columns = self.scan()
        shots = [self.shot(camera) for camera in CAMERAS]
        lidar2ego, ego2global = self.poses()
        scene = self.info.get("scene_name", self._scene)
        if not isinstance(scene, str):
            raise sensors.wrong(self.where, "scene_name", scene, "text")
        return FrameRecord(
            token=self.token,
            scene=scene[:200],
            timestamp_us=self._time_us,
            image_paths=tuple(shot.path for shot in shots),
            cam2img=np.array([shot.cam2img for shot in shots]),
            lidar2cam=np.array([shot.lidar2cam for shot in shots]),
            lidar_path=self.file.locate(name, LIDAR),
            sweeps=tuple(self._sweep(sweep, index, columns) for index, sweep in enumerate(self._sweeps)),
            lidar2ego=lidar2ego,
            ego2global=ego2global,
            columns=columns,
            root=self.file.root,
            **self.objects().columns(self.where),
        )

    def _sweep(self, sweep: Mapping[str, Any], index: int, stated: int | None) -> Sweep:
        field = f"{self.sweeps_at}[{index}]"
        scan = self.earlier_scan(sweep, field)
        time = sensors.microseconds(sweep.get("timestamp"), self.where, f"{field}.timestamp", self.per_unit)
        return Sweep(
            path=self.file.locate(scan.name, LIDAR, "sweeps"),
            lidar2sensor=scan.lidar2sensor,
            lag_s=sensors.lag(self._time_us, time, self.where, f"{field}.timestamp"),
            columns=scan.columns or stated,
        )

    def scan(self) -> tuple[Any, int | None]:
        """Return the name of the frame's scan, and its numbers per point if they are stated."""
        raise NotImplementedError

    def poses(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return lidar2ego and ego2global, (4, 4) each."""
        raise NotImplementedError

    def shot(self, camera: str) -> Shot:
        """Return a camera's image."""
        raise NotImplementedError

    def earlier_scan(self, sweep: Mapping[str, Any], field: str) -> EarlierScan:
        """Return an entry of the sweeps; ``field`` names it in error messages."""
        raise NotImplementedError

    def objects(self) -> Objects:
        """Return the objects of the ten classes."""
        raise NotImplementedError
