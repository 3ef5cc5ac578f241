"""The record of a key frame: its files, calibration and boxes, before any file is opened."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sweep:
    """An earlier LiDAR scan of the same scene.

    Attributes:
        path: the file.
        to_key: (4, 4) float64, LiDAR frame of the scan -> LiDAR frame of the key frame, in m.
        lag_s: time of the key frame minus that of the scan, in s.
    """

    path: Path
    to_key: NDArray[np.float64]
    lag_s: float


@dataclass(frozen=True, eq=False)
class FrameRecord:
    """The files, calibration and boxes of one key frame. No file is opened yet.

    Attributes:
        token: nuScenes sample token.
        scene: scene name.
        timestamp_us: time of the LiDAR scan, in microseconds.
        image_paths: six files in the order of ``CAMERAS``.
        cam2img: (6, 3, 3) float64, camera frame (m) -> pixels (u*d, v*d, d).
        lidar2cam: (6, 4, 4) float64, LiDAR frame at its time -> camera frame at the camera's time.
        lidar_path: the key frame's scan.
        sweeps: earlier scans, nearest first; may be empty.
        lidar2ego, ego2global: (4, 4) float64, at the time of the scan.
        boxes: (M, 9) float32, columns and frame as in ``Sample.boxes``.
        labels: (M,) int64, index into ``CLASSES``.
        num_points: (M,) int64, number of LiDAR points in each box, from the table.
        root: the dataset of the files; a link among them must not lead out of it.
    """

    token: str
    scene: str
    timestamp_us: int
    image_paths: tuple[Path, ...]
    cam2img: NDArray[np.float64]
    lidar2cam: NDArray[np.float64]
    lidar_path: Path
    sweeps: tuple[Sweep, ...]
    lidar2ego: NDArray[np.float64]
    ego2global: NDArray[np.float64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    num_points: NDArray[np.int64]
    root: Path | None = None

    def with_points(self, minimum: int) -> "FrameRecord":
        """Return the record without boxes with fewer LiDAR points than ``minimum``."""
        keep = self.num_points >= minimum
        return replace(
            self, boxes=self.boxes[keep], labels=self.labels[keep], num_points=self.num_points[keep]
        )
