"""The record of a key frame: its files, calibration and boxes, before any file is opened."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sample import CAMERAS, DataError


@dataclass(frozen=True)
class Sweep:
    """An earlier LiDAR scan of the same scene.

    Attributes:
        path: the file.
        lidar2sensor: (4, 4) float64, LiDAR frame of the key frame -> LiDAR frame of the scan, in m.
        lag_s: time of the key frame minus that of the scan, in s.
        columns: numbers per point, if the dataset states them.
    """

    path: Path
    lidar2sensor: NDArray[np.float64]
    lag_s: float
    columns: int | None = None

    @cached_property
    def to_key(self) -> NDArray[np.float64]:
        """(4, 4) float64, LiDAR frame of the scan -> LiDAR frame of the key frame, in m."""
        return np.asarray(np.linalg.inv(self.lidar2sensor), np.float64)


@dataclass(frozen=True, eq=False)
class FrameRecord:
    """The files, calibration and boxes of one key frame. No file is opened yet.

    Attributes:
        token: nuScenes sample token.
        scene: scene name.
        timestamp_us: time of the LiDAR scan, in microseconds.
        image_paths: six files in the order of ``CAMERAS``; None where the dataset names none.
        cam2img: (6, 3, 3) float64, camera frame (m) -> pixels (u*d, v*d, d).
        lidar2cam: (6, 4, 4) float64, LiDAR frame at its time -> camera frame at the camera's time.
        lidar_path: the key frame's scan.
        sweeps: earlier scans, nearest first; may be empty.
        lidar2ego, ego2global: (4, 4) float64, at the time of the scan.
        boxes: (M, 9) float32, columns and frame as in ``Sample.boxes``.
        labels: (M,) int64, index into ``CLASSES``.
        num_points: (M,) int64, number of LiDAR points in each box, from the table; 0 if it does not say.
        valid: (M,) bool, whether a LiDAR or radar point is in the box (mmdet3d: ``bbox_3d_isvalid``).
        columns: numbers per point of the scan, if the dataset states them.
        root: the dataset of the files; a link among them must not lead out of it.
    """

    token: str
    scene: str
    timestamp_us: int
    image_paths: tuple[Path | None, ...]
    cam2img: NDArray[np.float64]
    lidar2cam: NDArray[np.float64]
    lidar_path: Path
    sweeps: tuple[Sweep, ...]
    lidar2ego: NDArray[np.float64]
    ego2global: NDArray[np.float64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    num_points: NDArray[np.int64]
    valid: NDArray[np.bool_]
    columns: int | None = None
    root: Path | None = None

    def with_valid_boxes(self) -> "FrameRecord":
        """Return the record without boxes in which no LiDAR or radar point is."""
        keep = self.valid
        return replace(
            self,
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            num_points=self.num_points[keep],
            valid=self.valid[keep],
        )


def all_sound(found: Iterable[FrameRecord | DataError], where: str) -> list[FrameRecord]:
    """Return the frames of a dataset, or raise the first problem; see ``borrow_calibrations``."""
    records = []
    for record in found:
        if isinstance(record, DataError):
            raise record
        records.append(record)
    return borrow_calibrations(records, where)


def borrow_calibrations(records: Sequence[FrameRecord], where: str) -> list[FrameRecord]:
    """Give each camera that a frame lacks the calibration that it has in the nearest frame.

    A black image stands in for the camera, and its pixels need a place in the scene all the same.

    Raises:
        DataError: no frame has a camera.
    """
    made = list(records)
    for view, camera in enumerate(CAMERAS):
        there = np.array([i for i, record in enumerate(records) if record.image_paths[view] is not None])
        if records and not len(there):
            raise DataError(f"{where}: no frame has an image of {camera}; expected {', '.join(CAMERAS)}")
        for index in set(range(len(records))) - set(there.tolist()):
            near = records[there[np.abs(there - index).argmin()]]
            cam2img, lidar2cam = made[index].cam2img.copy(), made[index].lidar2cam.copy()
            cam2img[view], lidar2cam[view] = near.cam2img[view], near.lidar2cam[view]
            made[index] = replace(made[index], cam2img=cam2img, lidar2cam=lidar2cam)
    return made
