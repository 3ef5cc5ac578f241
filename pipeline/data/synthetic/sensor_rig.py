"""The sensors of the ego vehicle, mounted as on the cars of nuScenes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sample import CAMERAS


@dataclass(frozen=True)
class Rig:
    """Size of the sensors' output in a dataset.

    Attributes:
        name: name on the command line.
        width, height: size of an image in pixels.
        sweeps: number of LiDAR scans between two key frames, and before the first.
    """

    name: str
    width: int
    height: int
    sweeps: int


MINI = Rig("mini", 400, 225, 0)
"""A quarter of nuScenes' image size and no sweeps: quick to make and to train on."""

FULL = Rig("full", 1600, 900, 9)
"""What nuScenes has: 1600 x 900 pixels, and scans at 20 Hz where key frames are at 2 Hz."""

RIGS = {rig.name: rig for rig in (MINI, FULL)}

LIDAR_MOUNT = (0.94, 0.0, 1.84)
"""LiDAR on the roof: x, y, z in m in the ego frame (x forward, y left, z up)."""

LIDAR_YAW = -np.pi / 2
"""The LiDAR's x axis points right and its y axis forward, as on nuScenes' cars."""


@dataclass(frozen=True)
class Camera:
    """One camera; looks level.

    Attributes:
        name: channel.
        mount: x, y, z in m in the ego frame.
        yaw: direction of view in the ego frame, in rad.
        width, height: of its images, pixels.
        intrinsic: (3, 3) float64, camera frame (x right, y down, z forward) -> pixels.
    """

    name: str
    mount: tuple[float, float, float]
    yaw: float
    width: int
    height: int
    intrinsic: NDArray[np.float64]

    @property
    def rotation(self) -> NDArray[np.float64]:
        """(3, 3) camera frame -> ego frame."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[sin, 0.0, cos], [-cos, 0.0, sin], [0.0, -1.0, 0.0]])

    @property
    def camera2ego(self) -> NDArray[np.float64]:
        """(4, 4) camera frame -> ego frame."""
        made = np.eye(4)
        made[:3, :3] = self.rotation
        made[:3, 3] = self.mount
        return made


PRINCIPAL_POINT = (203.0, 122.0)
"""Where the optical axis meets the image of the ``MINI`` rig, pixels; a little off its middle."""

# Mounts, directions (degrees) and focal lengths of one car of nuScenes (log n015-2018-07-24), rounded.
_MOUNTS = {
    "CAM_FRONT": ((1.70, 0.02, 1.51), 0.3, 1266.0),
    "CAM_FRONT_RIGHT": ((1.55, -0.49, 1.50), -56.4, 1261.0),
    "CAM_FRONT_LEFT": ((1.52, 0.49, 1.51), 55.2, 1273.0),
    "CAM_BACK": ((0.03, 0.00, 1.58), 179.9, 809.0),
    "CAM_BACK_LEFT": ((1.04, 0.48, 1.59), 108.6, 1257.0),
    "CAM_BACK_RIGHT": ((1.01, -0.48, 1.56), -110.8, 1260.0),
}


def cameras(rig: Rig = MINI) -> tuple[Camera, ...]:
    """Return the six cameras in the order of ``CAMERAS``."""
    scale = rig.width / FULL.width  # the focal lengths above are nuScenes'
    u, v = (centre * rig.width / MINI.width for centre in PRINCIPAL_POINT)
    made = []
    for name in CAMERAS:
        mount, degrees, focal = _MOUNTS[name]
        intrinsic = np.array([[focal * scale, 0, u], [0, focal * scale, v], [0, 0, 1.0]])
        made.append(Camera(name, mount, float(np.deg2rad(degrees)), rig.width, rig.height, intrinsic))
    return tuple(made)


def lidar2ego() -> NDArray[np.float64]:
    """Return the (4, 4) transform LiDAR frame -> ego frame."""
    cos, sin = np.cos(LIDAR_YAW), np.sin(LIDAR_YAW)
    return np.array(
        [
            [cos, -sin, 0, LIDAR_MOUNT[0]],
            [sin, cos, 0, LIDAR_MOUNT[1]],
            [0, 0, 1, LIDAR_MOUNT[2]],
            [0, 0, 0, 1],
        ]
    )
