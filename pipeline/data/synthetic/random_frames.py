"""Random frames of any size, only for timing.

What determines the time is realistic: image size, the number of points and their distribution over voxels (32
    beams
of ten sweeps over ground and walls), the number of boxes, and cameras all around. The content is random.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.config.settings import CLASSES
from pipeline.data.sample import Sample

YAWS_DEG = (0, -55, 55, 180, 110, -110)
"""Where the six cameras of nuScenes look, from +y to the left, in the order of ``CAMERAS``."""

FOCAL = 0.79
"""Focal length over image width of nuScenes' cameras (1266 of 1600 pixels)."""

BEAMS_DEG = (-30.67, 10.67)
"""Lowest and highest of the 32 beams of nuScenes' LiDAR."""

SENSOR_HEIGHT, REACH = 1.84, 100.0
"""Metres: height of nuScenes' LiDAR above the ground, and how far it sees."""

SWEEP_STEP_M, SWEEP_STEP_S = 0.5, 0.05
"""What the car drives between two sweeps of 20 Hz, at 10 m/s."""


def stand_in_frame(seed: int, image_size: tuple[int, int], boxes: int = 45, sweeps: int = 10) -> Sample:
    """Make a random frame.

    Args:
        seed: seed of all draws.
        image_size: height and width in pixels.
        boxes: number of boxes.
        sweeps: LiDAR turns of about 34 000 points, as nuScenes has them.
    """
    rng = np.random.default_rng(seed)
    views = len(YAWS_DEG)
    return Sample(
        token=f"stand-in-{seed}",
        scene="stand-in",
        images=rng.integers(0, 256, (views, *image_size, 3), dtype=np.uint8),
        points=np.concatenate([_sweep(rng, i) for i in range(sweeps)]).astype(np.float32),
        lidar2img=np.stack([_camera(np.deg2rad(yaw), image_size) for yaw in YAWS_DEG]),
        boxes=_boxes(rng, boxes),
        labels=rng.integers(0, len(CLASSES), boxes),
        lidar2ego=np.eye(4),
        ego2global=np.eye(4),
    )


def _sweep(rng: np.random.Generator, age: int) -> NDArray[np.float64]:
    """Return one turn of the LiDAR, (N, 5); shots that hit neither ground nor wall give no point."""
    beam, angle = np.meshgrid(
        np.deg2rad(np.linspace(*BEAMS_DEG, 32)), np.linspace(0, 2 * np.pi, 1085, endpoint=False)
    )
    walls = 25 + 20 * np.sin(3 * angle + 1) + 10 * np.sin(17 * angle)  # m; houses, cars and gaps around
    with np.errstate(divide="ignore"):
        ground = np.where(beam < 0, SENSOR_HEIGHT / np.sin(-beam), np.inf)
    reach = np.minimum(ground, walls / np.cos(beam))
    high = reach * np.sin(beam)
    seen = (reach < REACH) & (high < 6)  # m; no wall is taller
    reach = (reach + rng.normal(0, 0.02, reach.shape))[seen]
    beam, angle = beam[seen], angle[seen]
    flat = reach * np.cos(beam)
    x, y = flat * np.cos(angle), flat * np.sin(angle) - age * SWEEP_STEP_M
    rest = rng.uniform(0, 255, x.shape), np.full(x.shape, age * SWEEP_STEP_S)
    return np.stack([x, y, reach * np.sin(beam), *rest], axis=1)


def _boxes(rng: np.random.Generator, number: int) -> NDArray[np.float32]:
    place = rng.uniform([-45, -45, -2], [45, 45, 0], (number, 3))
    size = rng.uniform(0.5, 5, (number, 3))
    rest = rng.uniform([-3, -8, -8], [3, 8, 8], (number, 3))  # yaw, velocity
    return np.concatenate([place, size, rest], axis=1).astype(np.float32)


def _camera(yaw: float, size: tuple[int, int]) -> NDArray[np.float64]:
    """Return lidar2img of a pinhole camera that looks along +y, rotated by ``yaw`` about z."""
    height, width = size
    focal = FOCAL * width
    inner = np.array([[focal, 0, width / 2, 0], [0, focal, height / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    cos, sin = np.cos(yaw), np.sin(yaw)
    turned = np.array([[cos, sin, 0, 0], [0, 0, -1, 0], [-sin, cos, 0, 0], [0, 0, 0, 1]])
    matrix: NDArray[np.float64] = inner @ turned
    return matrix
