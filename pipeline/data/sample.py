"""A frame in memory: the type that all readers return and all transforms take."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
"""Order of the cameras in mmdet3d's info files, and in every tensor with a view axis."""


class DataError(ValueError):
    """A dataset, a file or a value in it cannot be used. The message names it and gives the reason."""


@dataclass(frozen=True)
class Sample:
    """One key frame with V views, M boxes and N points, in nuScenes' LiDAR frame (x right, y forward).

    Attributes:
        token: nuScenes sample token.
        scene: scene name.
        images: (V, h, w, 3) uint8, BGR, in the order of ``CAMERAS``.
        points: (N, 5) float32: x, y, z in m, intensity, time lag in s.
        lidar2img: (V, 4, 4) float64: LiDAR frame (m) -> pixels (u*d, v*d, d, 1).
        boxes: (M, 9) float32: x, y, z of the centre (gravity centre), length, width, height in m, yaw in
            rad about z from the x axis, velocity x, y in m/s (NaN if unknown).
        labels: (M,) int64, index into ``pipeline.config.settings.CLASSES``.
        lidar2ego, ego2global: (4, 4) float64.
    """

    token: str
    scene: str
    images: NDArray[np.uint8]
    points: NDArray[np.float32]
    lidar2img: NDArray[np.float64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    lidar2ego: NDArray[np.float64]
    ego2global: NDArray[np.float64]


@dataclass(frozen=True)
class Detections:
    """The N boxes that a detector predicts for one frame, best first, in the LiDAR frame.

    Attributes:
        boxes: (N, 9) float32, columns as in ``Sample.boxes``.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


MAX_SWEEPS = 10
"""Number of earlier LiDAR scans in a key frame (``sweeps_num`` of CMT's configs, junjie18/CMT)."""


Transform = Callable[[Sample, np.random.Generator], Sample]
"""A transform of a training sample. All its draws come from the given generator."""


@runtime_checkable
class EpochTransform(Protocol):
    """A transform that depends on the epoch."""

    def at(self, epoch: int) -> Transform:
        """Return the transform of an epoch (from 0)."""
        ...
