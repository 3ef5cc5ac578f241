"""Camera images of a generated world by ray casting, with paint, sunlight, deep shadow and night."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.synthetic.object_classes import BANDS, CHECKS, DIAGONALS, KINDS, STRIPES, Kind
from pipeline.data.synthetic.ray_casting import Floats, Hits, Solids, Window, cast
from pipeline.data.synthetic.sensor_rig import MINI, Camera, Rig, cameras
from pipeline.data.synthetic.world import BUILDINGS_M, CURB_M, CYCLE_LANE_M, LANE_M, SIDEWALK_M, World

NEAR_M = 0.2
"""Near plane: parts of objects nearer to a camera than this are not drawn."""

SHADE = 0.1
"""Brightness in the deep shadow relative to outside: five to twenty of 255 grey levels remain."""

AMBIENT, SUNLIGHT = 0.75, 0.35
"""Share of light on every face, and additional share on a face towards the sun."""

HEADLIGHT_M = 32.0
"""Reach of the headlights at night."""

NOISE = 4
"""Sensor noise, uniform within plus and minus this many grey levels."""

QUALITY = 88
"""JPEG quality; a picture of the mini rig takes about 15 kB."""

GLASS = (70, 50, 40)
LAMP = (235, 255, 255)


@dataclass(frozen=True)
class View:
    """A camera with the tables that are the same for all its images.

    Attributes:
        camera: its pose and intrinsics.
        origin: (3,) float32 in the ego frame.
        directions: (H, W, 3) float32, rays of depth 1 in the ego frame.
        rays: (3, H * W) float32, the same, x, y and z apart.
        ground: (H, W) float32, the ground's depth along each ray, inf above the horizon.
        floor: (2, H * W) float32, x and y where each ray meets the ground, ego frame.
        sky: (H * W, 3) float32, BGR of the sky by day.
    """

    camera: Camera
    origin: Floats
    directions: Floats
    rays: Floats
    ground: Floats
    floor: Floats
    sky: Floats


@lru_cache(maxsize=1)
def views(rig: Rig = MINI) -> tuple[View, ...]:
    """Return the six views in the order of ``CAMERAS``."""
    made = []
    for camera in cameras(rig):
        u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
        rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(camera.intrinsic).T
        directions = rays @ camera.rotation.T
        below = directions[..., 2] < 0
        ground = np.full(below.shape, np.inf)
        ground[below] = -camera.mount[2] / directions[below][:, 2]
        floor = np.zeros((*below.shape, 2))
        floor[below] = np.array(camera.mount[:2]) + directions[below][:, :2] * ground[below][:, None]
        made.append(
            View(
                camera,
                np.array(camera.mount, np.float32),
                directions.astype(np.float32),
                np.ascontiguousarray(directions.reshape(-1, 3).T, np.float32),
                ground.astype(np.float32),
                np.ascontiguousarray(floor.reshape(-1, 2).T, np.float32),
                _sky(directions).reshape(-1, 3),
            )
        )
    return tuple(made)


def shoot(
    view: View, world: World, solids: Solids, time_s: float, rng: np.random.Generator
) -> tuple[bytes, Hits]:
    """Take one picture.

    Returns:
        jpeg: the encoded image.
        hits: the object and depth of each pixel.
    """
    hits = cast(view.origin, view.directions, view.ground, solids, _windows(view.camera, solids))
    ego = world.ego_at(time_s)
    actor, depth = hits.actor.ravel(), hits.depth.ravel()
    # At night the sky darkens more than the street.
    image = view.sky * np.float32(world.light**2)
    bare = np.flatnonzero((actor < 0) & np.isfinite(depth))
    x, y = (plane[bare] for plane in view.floor)
    _put(image, bare, _ground_colour(ego, x, y) * _light(world, ego, x, y)[:, None])
    met, ends = _by_actor(actor, len(world.actors))
    far = depth[met]
    spots = [origin + plane[met] * far for origin, plane in zip(view.origin, view.rays, strict=True)]
    colour = _paint(world, solids, spots, ends, hits.axis.ravel()[met], _to_ego(world.sun, ego[2]))
    _put(image, met, colour * _light(world, ego, *spots[:2])[:, None])
    image += rng.integers(-NOISE, NOISE + 1, image.shape, np.int8)
    picture = np.clip(image, 0, 255).astype(np.uint8).reshape(view.camera.height, view.camera.width, 3)
    done, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise RuntimeError("OpenCV could not encode a JPEG; its build lacks the codec")
    return jpeg.tobytes(), hits


def _windows(camera: Camera, solids: Solids) -> list[Window]:
    """Return the window of pixels around each object in front of the camera."""
    corners = (solids.corners() - np.array(camera.mount)) @ camera.rotation  # (A, 8, 3) camera frame
    windows: list[Window] = []
    for index in np.flatnonzero((corners[..., 2] > NEAR_M).any(axis=1)):
        ends = corners[index]
        if (ends[:, 2] <= NEAR_M).any():
            ends = _cut(ends)
        pixels = ends @ camera.intrinsic.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        low = np.maximum(np.floor(pixels.min(axis=0)), 0).astype(int)
        high = np.minimum(np.ceil(pixels.max(axis=0)) + 1, (camera.width, camera.height)).astype(int)
        if (low < high).all():
            windows.append((int(index), slice(low[1], high[1]), slice(low[0], high[0])))
    return windows


def _cut(ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the corners in front of the near plane, and the points where edges cross it."""
    pairs = [(a, a | bit) for a in range(8) for bit in (1, 2, 4) if not a & bit]
    kept = [ends[ends[:, 2] > NEAR_M]]
    for a, b in pairs:
        one, two = ends[a], ends[b]
        if (one[2] > NEAR_M) != (two[2] > NEAR_M):
            kept.append((one + (two - one) * (NEAR_M - one[2]) / (two[2] - one[2]))[None])
    return np.concatenate(kept)


def _to_ego(vector: NDArray[np.float64], ego_yaw: float) -> NDArray[np.float64]:
    cos, sin = np.cos(ego_yaw), np.sin(ego_yaw)
    return np.array([cos * vector[0] + sin * vector[1], cos * vector[1] - sin * vector[0], vector[2]])


def _sky(directions: NDArray[np.float64]) -> Floats:
    """Return a sky, BGR, for directions (..., 3); paler towards the horizon."""
    rise = np.clip(directions[..., 2:] * 1.6, 0, 1)
    sky = np.array([205, 160, 120]) * rise + np.array([225, 215, 205]) * (1 - rise)
    return sky.astype(np.float32)


def _put(image: Floats, places: NDArray[np.int64], colours: Floats) -> None:
    """Set pixels of an image (H * W, 3); pixels are moved as a whole, which takes a third of the time."""
    pixel = np.dtype((np.void, 3 * image.itemsize))
    image.view(pixel)[places, 0] = np.ascontiguousarray(colours, np.float32).view(pixel)[:, 0]


def _by_actor(actor: NDArray[np.int32], number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pixels that show an object, object after object, and where each object's begin and end."""
    met = np.flatnonzero(actor >= 0)
    shown = actor[met].astype(np.int16)  # NumPy sorts 16 bits by radix, in linear time
    ends = np.concatenate([[0], np.cumsum(np.bincount(shown, minlength=number))])
    return met[np.argsort(shown, kind="stable")], ends


def _on_road(ego: tuple[float, float, float], x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return s and d (N,) of spots of the ego frame."""
    cos, sin = np.float32(np.cos(ego[2])), np.float32(np.sin(ego[2]))
    return np.float32(ego[0]) + cos * x - sin * y, np.float32(ego[1]) + sin * x + cos * y


def _light(world: World, ego: tuple[float, float, float], x: Floats, y: Floats) -> Floats:
    """Return brightness (N,) at spots of the ego frame: scene, deep shadow, headlights."""
    along, _ = _on_road(ego, x, y)
    light = np.full(len(x), world.light, np.float32)
    light[(along > world.shade[0]) & (along < world.shade[1])] *= SHADE
    if world.light < 0.5:  # night
        range_m = np.hypot(x, y)
        beam = (x > 0) & (np.abs(y) < 0.6 * x)
        light += np.where(beam, 0.55 * np.clip(1 - range_m / HEADLIGHT_M, 0, 1), 0).astype(np.float32)
    return light


@lru_cache(maxsize=1)
def _ground_table() -> Floats:
    """Return ground colours (2048, 3) by d, eight to a metre from -64 m; then again with lane dashes."""
    d = np.abs((np.arange(1024) + 0.5) / 8 - 64)
    table = np.full((1024, 3), (88, 92, 92), np.float32)  # asphalt
    table[d > CYCLE_LANE_M - 0.9] = (70, 78, 110)  # reddish cycle lane
    table[d > CYCLE_LANE_M + 0.9] = (120, 124, 126)  # curb
    table[d > CURB_M + 0.5] = (150, 154, 158)  # pavement
    table[d > SIDEWALK_M + 3.6] = (96, 108, 104)  # lots
    table[d > BUILDINGS_M - 6] = (60, 110, 80)  # grass
    table[(d < 0.2) | (np.abs(d - 2 * LANE_M) < 0.13)] = (225, 230, 230)  # middle and edges of the road
    dashed = table.copy()
    dashed[np.abs(d - LANE_M) < 0.13] = (225, 230, 230)
    return np.concatenate([table, dashed])


@lru_cache(maxsize=1)
def _grain() -> Floats:
    """Return a texture (256, 256) of factors about 1 for the ground."""
    rng = np.random.default_rng(20)  # any number; the ground looks the same in all datasets
    return cv2.GaussianBlur(rng.uniform(0.55, 1.45, (256, 256)).astype(np.float32), (3, 3), 0)


def _ground_colour(ego: tuple[float, float, float], x: Floats, y: Floats) -> Floats:
    """Return BGR (N, 3) of the ground at spots of the ego frame."""
    s, d = _on_road(ego, np.clip(x, -1e4, 1e4), np.clip(y, -1e4, 1e4))  # near the horizon it has no end
    row = np.clip((d + 64) * 8, 0, 1023).astype(np.int32)
    row += 1024 * (np.mod(s, np.float32(9)) < 3)  # lanes are painted on 3 m of every 9 m
    cell = ((s * 6).astype(np.int32) & 255) * 256 + ((d * 6).astype(np.int32) & 255)
    return _ground_table()[row] * _grain().ravel()[cell][:, None]


def _paint(
    world: World,
    solids: Solids,
    spots: Sequence[Floats],
    ends: NDArray[np.int64],
    axis: NDArray[np.int8],
    sun: NDArray[np.float64],
) -> Floats:
    """Return BGR (N, 3) of objects: two colours in a pattern, windscreen and lamps, lit by the sun.

    Args:
        world: its actors.
        solids: the same at this moment.
        spots: x, y, z (N,) of what each pixel shows, object after object.
        ends: (A + 1,) where the pixels of each object begin and end.
        axis: (N,) of the faces.
        sun: direction in the ego frame.
    """
    painted = np.empty((len(axis), 3), np.float32)
    for index in np.flatnonzero(np.diff(ends)):
        part = slice(ends[index], ends[index + 1])
        seen = _Seen.of(solids, int(index), [plane[part] for plane in spots], axis[part])
        actor = world.actors[index]
        table = _colours(KINDS[actor.kind], np.float32(actor.tint), seen.light(sun))
        painted[part] = table[seen.row(KINDS[actor.kind]), seen.face()]
    return painted


def _colours(kind: Kind, tint: np.float32, light: NDArray[np.float64]) -> Floats:
    """Return BGR (4, 7, 3): both colours, glass and lamps under the light on each kind of face."""
    own = np.array([kind.colour, kind.second], np.float32) * tint
    every = np.concatenate([own, np.array([GLASS, LAMP], np.float32)])
    return (every[:, None] * light[:, None]).astype(np.float32)


@dataclass(frozen=True)
class _Seen:
    """The pixels that show one object.

    Attributes:
        cos, sin: of its heading.
        x, y: (N,) from its centre, in its own frame.
        high: (N,) height above its centre, of half its height.
        wide: half its width.
        z: (N,) height above the ground.
        axis: (N,) of the faces.
    """

    cos: np.float32
    sin: np.float32
    x: Floats
    y: Floats
    high: Floats
    wide: np.float32
    z: Floats
    axis: NDArray[np.int8]

    @classmethod
    def of(cls, solids: Solids, index: int, spots: Sequence[Floats], axis: NDArray[np.int8]) -> "_Seen":
        """Put spots of the ego frame into the frame of an object."""
        cos, sin = (np.float32(turn(solids.yaw[index])) for turn in (np.cos, np.sin))
        centre, half = solids.centre[index].astype(np.float32), solids.half[index].astype(np.float32)
        ahead, left, up = (plane - middle for plane, middle in zip(spots, centre, strict=True))
        x, y = cos * ahead + sin * left, cos * left - sin * ahead
        return cls(cos, sin, x, y, up / half[2], half[1], spots[2], axis)

    def row(self, kind: Kind) -> NDArray[np.int32]:
        """Return the row of ``_colours``: 0 and 1 for the pattern, 2 for glass, 3 for lamps."""
        period = np.float32(kind.period_m) / 2
        along = np.where(self.axis == 0, self.y, self.x)
        if kind.pattern == DIAGONALS:
            cell = np.floor((along + self.z) / period).astype(np.int32)
        else:
            cell = np.zeros(len(along), np.int32)
            if kind.pattern in (STRIPES, CHECKS):
                cell += np.floor(along / period).astype(np.int32)
            if kind.pattern in (BANDS, CHECKS):
                cell += np.floor(self.z / period).astype(np.int32)
        cell &= 1
        if kind.glazed:
            front = (self.axis == 0) & (self.x > 0)
            cell[front & (self.high > 0.15) & (self.high < 0.8)] = 2
            beside = np.abs(self.y) > 0.55 * self.wide
            cell[front & (self.high < -0.3) & (self.high > -0.65) & beside] = 3
        return cell

    def face(self) -> NDArray[np.int8]:
        """Return which face a pixel shows: back, edge, front; right, edge, left; top (0 to 6)."""
        ahead = (self.x > 0).astype(np.int8) - (self.x < 0)
        left = (self.y > 0).astype(np.int8) - (self.y < 0)
        return np.where(self.axis == 0, ahead + 1, np.where(self.axis == 1, left + 4, 6)).astype(np.int8)

    def light(self, sun: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the light (7,) on each kind of face."""
        ahead, left = self.cos * sun[0] + self.sin * sun[1], self.cos * sun[1] - self.sin * sun[0]
        facing = np.array([-ahead, 0, ahead, -left, 0, left, sun[2]])
        return AMBIENT + SUNLIGHT * np.clip(facing, 0, 1)
