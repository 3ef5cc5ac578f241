"""A spinning LiDAR with 32 beams, simulated by ray casting."""

import numpy as np
from numpy.typing import NDArray

from pipeline.data.synthetic.ray_casting import Floats, Hits, Solids, Window, cast
from pipeline.data.synthetic.sensor_rig import LIDAR_MOUNT, lidar2ego
from pipeline.data.synthetic.world import World

BEAMS = 32
COLUMNS = 1080
"""Shots per turn and beam, as nuScenes' scanner gives at 20 turns a second."""

ELEVATIONS_DEG = (-30.67, 10.67)
"""Lowest and highest beam of the Velodyne HDL-32E."""

RANGE_M = 70.0
"""Range of the HDL-32E's useful returns."""

NOISE_M = 0.02
"""Standard deviation of the measured range; the HDL-32E's data sheet says 2 cm."""

GROUND_REFLECTANCE = 0.12


def scan(world: World, solids: Solids, rng: np.random.Generator) -> tuple[Floats, Hits]:
    """Scan the world once.

    Returns:
        points: (N, 5) float32 in the LiDAR frame: x, y, z in m, intensity 0-255, ring; in the order of
            firing.
        hits: the object and depth of each shot; rows are beams from the lowest up, columns are azimuths.
    """
    azimuth = -np.linspace(0, 2 * np.pi, COLUMNS, endpoint=False)  # clockwise, as the real scanner turns
    elevation = np.linspace(*ELEVATIONS_DEG, BEAMS) * (np.pi / 180)
    directions = _directions(azimuth, elevation)
    with np.errstate(divide="ignore"):
        ground = np.where(directions[..., 2] < 0, -LIDAR_MOUNT[2] / directions[..., 2], np.inf)
    origin = np.array(LIDAR_MOUNT, np.float32)
    hits = cast(origin, directions, ground.astype(np.float32), solids, _windows(solids))
    return _returns(world, directions, hits, rng), hits


def points_in_boxes(points: Floats, solids: Solids) -> NDArray[np.int64]:
    """Count the points (N, 5), LiDAR frame, inside each bounding box; (A,)."""
    turn = lidar2ego()
    spots = points[:, :3].astype(np.float64) @ turn[:3, :3].T + turn[:3, 3]
    spots = spots[np.argsort(spots[:, 0], kind="stable")]
    reach = np.hypot(solids.half[:, 0], solids.half[:, 1])
    first = np.searchsorted(spots[:, 0], solids.centre[:, 0] - reach)
    last = np.searchsorted(spots[:, 0], solids.centre[:, 0] + reach, side="right")
    counts = np.zeros(len(solids.yaw), np.int64)
    for index in range(len(counts)):
        away = spots[first[index] : last[index]] - solids.centre[index]
        cos, sin = np.cos(solids.yaw[index]), np.sin(solids.yaw[index])
        local = np.stack(
            [cos * away[:, 0] + sin * away[:, 1], cos * away[:, 1] - sin * away[:, 0], away[:, 2]]
        )
        counts[index] = np.count_nonzero((np.abs(local) <= solids.half[index][:, None]).all(axis=0))
    return counts


def _directions(azimuth: NDArray[np.floating], elevation: NDArray[np.floating]) -> Floats:
    """Return unit vectors (beams, columns, 3) in the ego frame."""
    level, up = np.cos(elevation)[:, None], np.sin(elevation)[:, None]
    return np.stack(
        [level * np.cos(azimuth), level * np.sin(azimuth), np.broadcast_to(up, (BEAMS, COLUMNS))], axis=-1
    ).astype(np.float32)


def _windows(solids: Solids) -> list[Window]:
    """Return the window of columns around each object within range."""
    away = solids.corners()[:, ::2, :2] - np.array(LIDAR_MOUNT[:2])
    bearing = np.arctan2(solids.centre[:, 1] - LIDAR_MOUNT[1], solids.centre[:, 0] - LIDAR_MOUNT[0])
    spread = np.arctan2(away[..., 1], away[..., 0]) - bearing[:, None]
    spread = (spread + np.pi) % (2 * np.pi) - np.pi
    step = 2 * np.pi / COLUMNS
    first = np.floor((-bearing - spread.max(axis=1)) / step).astype(int)
    last = np.ceil((-bearing - spread.min(axis=1)) / step).astype(int)
    near = np.hypot(away[..., 0], away[..., 1]).min(axis=1) < RANGE_M
    windows: list[Window] = []
    for index in np.flatnonzero(near):
        start = first[index] % COLUMNS
        end = start + last[index] - first[index] + 1
        windows.append((int(index), slice(None), slice(start, min(end, COLUMNS))))
        if end > COLUMNS:
            windows.append((int(index), slice(None), slice(0, end - COLUMNS)))
    return windows


def _returns(world: World, directions: Floats, hits: Hits, rng: np.random.Generator) -> Floats:
    """Return the points of the hits, with noise on the range; fewer and fainter points with distance."""
    ring, column = np.nonzero(np.isfinite(hits.depth.T) & (hits.depth.T < RANGE_M))[::-1]
    depth, actor = hits.depth[ring, column], hits.actor[ring, column]
    reflectance = np.array([actor.reflectance for actor in world.actors] + [GROUND_REFLECTANCE], np.float32)
    strength = reflectance[actor] * (1 - 0.6 * depth / RANGE_M)
    # Near returns are almost always received; at the end of the range one in two, of dark objects one in
    # five.
    chance = 0.98 - (depth / RANGE_M) ** 2 * (0.85 - 0.4 * reflectance[actor])
    back = rng.random(len(depth), np.float32) < chance
    ring, depth, strength = ring[back], depth[back], strength[back]
    aim = directions[ring, column[back]]
    measured = depth + rng.standard_normal(len(depth), np.float32) * np.float32(NOISE_M)
    turn = lidar2ego()[:3, :3].astype(np.float32)
    intensity = np.clip(strength * 255 + rng.standard_normal(len(depth), np.float32) * 6, 0, 255)
    spots = (aim * measured[:, None]) @ turn  # the transpose of LiDAR -> ego, on rows
    return np.column_stack([spots, np.round(intensity), ring]).astype(np.float32)
