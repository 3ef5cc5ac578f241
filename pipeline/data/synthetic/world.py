"""The street of one scene, with all objects on it.

Road frame: s in m along the road, d in m to its left, z up, ground at z = 0. The ego vehicle drives in the
    direction
of s, in the right lane next to the middle. Traffic keeps right.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.data.synthetic.object_classes import KINDS, PARKED_CYCLE, PARKED_CYCLE_PARTS, TWINS, Part

REACH_M = 62.0
"""Half the length of street that is filled around the ego; somewhat beyond the 54 m that models look at."""

LANE_M = 3.5
EGO_LANE_M = -1.75
"""Middle of the ego's lane."""

LANES = (EGO_LANE_M, -5.25, 1.75, 5.25)
CYCLE_LANE_M = 8.0
CURB_M = 9.5
LOT_M = (15.0, 44.0)
"""Parking lots on both sides, from and to, |d|."""

BUILDINGS_M = 54.0
SIDEWALK_M = 10.7


@dataclass(frozen=True)
class Actor:
    """One object of a scene.

    Attributes:
        kind: key of ``KINDS``.
        size: length, width, height in m.
        parts: its shape, see ``object_classes.Part``.
        s, d: position of its centre at time 0, in m.
        yaw: heading in the road frame, in rad.
        speed: along its heading, in m/s; constant.
        reflectance: for LiDAR, 0-1.
        tint: factor on its colours, about 1.
    """

    kind: str
    size: tuple[float, float, float]
    parts: tuple[Part, ...]
    s: float
    d: float
    yaw: float
    speed: float
    reflectance: float
    tint: float

    def at(self, time_s: float) -> tuple[float, float, float]:
        """Return s, d, yaw at a time."""
        way = self.speed * time_s
        return self.s + way * np.cos(self.yaw), self.d + way * np.sin(self.yaw), self.yaw


@dataclass(frozen=True)
class World:
    """One scene.

    Attributes:
        actors: all objects, annotated and props.
        ego_speed: in m/s.
        sway: phase of the ego's small movements in its lane, in rad.
        light: brightness of the scene, 1 by day.
        sun: (3,) unit vector to the sun, road frame.
        shade: s from and to, in m: a stretch in deep shadow, where cameras see next to nothing.
        heading: direction of the road in the global frame, in rad.
    """

    actors: tuple[Actor, ...]
    ego_speed: float
    sway: float
    light: float
    sun: NDArray[np.float64]
    shade: tuple[float, float]
    heading: float

    def ego_at(self, time_s: float) -> tuple[float, float, float]:
        """Return s, d, yaw of the ego vehicle in the road frame at a time."""
        s = self.ego_speed * time_s + 0.6 * np.sin(0.7 * time_s)  # speed varies by 0.42 m/s
        d = EGO_LANE_M + 0.35 * np.sin(0.5 * time_s + self.sway)  # stays 1.4 m clear of the lane's border
        ds = self.ego_speed + 0.42 * np.cos(0.7 * time_s)
        dd = 0.175 * np.cos(0.5 * time_s + self.sway)
        return float(s), float(d), float(np.arctan2(dd, ds))


def build_world(rng: np.random.Generator, duration_s: float, night: bool) -> World:
    """Draw a scene.

    Args:
        rng: source of all choices.
        duration_s: how long the ego will drive; the street is long enough for it.
        night: dark scene.
    """
    ego_speed = float(rng.uniform(3.5, 6.5))
    street = (-REACH_M, REACH_M + ego_speed * duration_s)
    draw = _Draw(rng)
    actors = [
        *_traffic(draw, ego_speed, duration_s),
        *_cycles(draw, ego_speed, duration_s),
        *_pavement(draw, street),
        *_roadworks(draw, street),
    ]
    actors += _lots(draw, street, actors)
    actors += _scenery(draw, street)
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.5, 1.1)
    sun = np.array(
        [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
    )
    shade_from = float(rng.uniform(5.0, 5.0 + ego_speed * duration_s))
    return World(
        actors=tuple(actors),
        ego_speed=ego_speed,
        sway=float(rng.uniform(0, 2 * np.pi)),
        light=0.4 if night else float(rng.uniform(0.85, 1.0)),
        sun=sun,
        shade=(shade_from, shade_from + 13.0),  # an eighth of the 108 m that models look at
        heading=float(rng.uniform(-np.pi, np.pi)),
    )


class _Draw:
    """Draws actors. Twin classes are drawn in turn, in random order, so that both occur in every scene."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.waiting: dict[str, list[str]] = {}

    def twin(self, pair: tuple[str, str]) -> str:
        queue = self.waiting.setdefault(pair[0], [])
        if not queue:
            queue += [pair[index] for index in self.rng.permutation(2)]
        return queue.pop()

    def vehicle(self, car: float = 0.25) -> str:
        """Return a class of vehicle; ``car`` is the share of cars."""
        chance = self.rng.uniform()
        if chance < car:
            return "car"
        return self.twin(TWINS[0] if chance < (1 + car) / 2 else TWINS[1])

    def actor(self, kind: str, s: float, d: float, yaw: float, speed: float = 0.0) -> Actor:
        made = KINDS[kind]
        size, parts = made.size, made.parts
        if kind in TWINS[2] and speed == 0.0:
            size, parts = PARKED_CYCLE, PARKED_CYCLE_PARTS
        length, width, height = (float(side * self.rng.uniform(0.95, 1.05)) for side in size)
        return Actor(
            kind=kind,
            size=(length, width, height),
            parts=parts,
            s=float(s),
            d=float(d),
            yaw=float(yaw),
            speed=float(speed),
            reflectance=float(self.rng.uniform(*made.reflectance)),
            tint=float(self.rng.uniform(0.85, 1.1)),
        )

    def along(self, start: float, end: float, gap: tuple[float, float]) -> Iterator[float]:
        """Yield places from ``start`` to ``end`` with random gaps between them."""
        s = start + self.rng.uniform(0, gap[1])
        while s < end:
            yield float(s)
            s += self.rng.uniform(*gap)


def _covered(ego_speed: float, speed_s: float, duration_s: float) -> tuple[float, float]:
    """Return the stretch of road at time 0 whose traffic comes near the ego vehicle at any time."""
    drift = (ego_speed - speed_s) * duration_s
    return -REACH_M + min(0.0, drift), REACH_M + max(0.0, drift)


def _traffic(draw: _Draw, ego_speed: float, duration_s: float) -> Iterator[Actor]:
    for lane in LANES:
        way = -1.0 if lane > 0 else 1.0
        speed, gap, cars = float(draw.rng.uniform(2.0, 8.0)), (28.0, 50.0), 0.3
        if lane == EGO_LANE_M:
            speed = ego_speed
        elif way > 0:
            # Beside the ego: few vehicles, mostly low, and not for long, because a bus hides half the scene.
            speed = ego_speed + float(draw.rng.choice([-1.0, 1.0]) * draw.rng.uniform(1.5, 3.0))
            gap, cars = (36.0, 64.0), 0.85
        for s in draw.along(*_covered(ego_speed, way * speed, duration_s), gap=gap):
            if lane == EGO_LANE_M and abs(s) < 16.0:  # clear of the ego by more than half a bus and a car
                continue
            yaw = 0.0 if way > 0 else np.pi
            yield draw.actor(draw.vehicle(cars), s, lane + draw.rng.uniform(-0.2, 0.2), yaw, speed)


def _cycles(draw: _Draw, ego_speed: float, duration_s: float) -> Iterator[Actor]:
    for side in (-1.0, 1.0):
        speed = float(draw.rng.uniform(2.0, 5.0))
        yaw = 0.0 if side < 0 else np.pi
        for s in draw.along(*_covered(ego_speed, -side * speed, duration_s), gap=(22.0, 42.0)):
            yield draw.actor(draw.twin(TWINS[2]), s, side * CYCLE_LANE_M, yaw, speed)


def _pavement(draw: _Draw, street: tuple[float, float]) -> Iterator[Actor]:
    """Yield people, walking or standing, each on a separate line so that they do not collide."""
    for side in (-1.0, 1.0):
        for place, s in enumerate(draw.along(*street, gap=(14.0, 40.0))):
            walks = draw.rng.uniform() < 0.6  # most walk
            yaw = draw.rng.choice([0.0, np.pi]) if walks else draw.rng.uniform(-np.pi, np.pi)
            speed = draw.rng.uniform(0.8, 1.6) if walks else 0.0
            yield draw.actor("pedestrian", s, side * (SIDEWALK_M + 0.9 * (place % 4)), yaw, speed)


def _roadworks(draw: _Draw, street: tuple[float, float]) -> Iterator[Actor]:
    """Rows of barriers and cones along the curb."""
    for side in (-1.0, 1.0):
        for start in draw.along(*street, gap=(40.0, 66.0)):
            s = start
            for kind in draw.rng.permutation(["barrier"] * 2 + ["traffic_cone"] * 2):
                yaw = np.pi / 2 if kind == "barrier" else draw.rng.uniform(-np.pi, np.pi)
                yield draw.actor(str(kind), s, side * CURB_M, yaw + draw.rng.normal(0, 0.08))
                s += draw.rng.uniform(3.2, 4.2)


def _lots(draw: _Draw, street: tuple[float, float], others: list[Actor]) -> list[Actor]:
    """Return parked objects on both sides that overlap no other object."""
    length = street[1] - street[0]
    # One of each twin is always near, so that every class occurs in every scene.
    wanted = (
        [(twin, (LOT_M[0], 26.0)) for pair in TWINS for twin in pair]
        + [("vehicle", LOT_M)] * (round(length / 13) - 4)
        + [("cycle", (LOT_M[0], 27.0))] * (round(length / 26) - 2)
        + [("traffic_cone", (LOT_M[0], 24.0))] * round(length / 50)
        + [("barrier", (LOT_M[0], 24.0))] * round(length / 50)
        + [("pedestrian", (LOT_M[0], 30.0))] * round(length / 50)
        + [("cart", (LOT_M[0], 30.0))] * 2
    )
    placed: list[Actor] = []
    for what, (near, far) in wanted:
        kind = draw.vehicle() if what == "vehicle" else draw.twin(TWINS[2]) if what == "cycle" else what
        for _ in range(20):  # tries; a crowded lot simply gets fewer
            d = draw.rng.choice([-1.0, 1.0]) * draw.rng.uniform(near, far)
            yaw = draw.rng.integers(4) * np.pi / 2 + draw.rng.normal(0, 0.15)
            actor = draw.actor(kind, draw.rng.uniform(*street), d, yaw)
            if all(_apart(actor, other) for other in placed + [o for o in others if o.speed == 0.0]):
                placed.append(actor)
                break
    return placed


def _apart(one: Actor, other: Actor) -> bool:
    reach = (np.hypot(*one.size[:2]) + np.hypot(*other.size[:2])) / 2
    return bool(np.hypot(one.s - other.s, one.d - other.d) > reach + 0.4)  # room to walk between


def _scenery(draw: _Draw, street: tuple[float, float]) -> Iterator[Actor]:
    """Buildings behind the lots: props without annotation."""
    for side in (-1.0, 1.0):
        for s in draw.along(street[0] - 20, street[1] + 20, gap=(30.0, 44.0)):
            made = draw.actor("building", s, side * BUILDINGS_M, 0.0 if side < 0 else np.pi)
            height = made.size[2] * draw.rng.uniform(0.6, 1.6)
            yield replace(made, size=(made.size[0], made.size[1], float(height)))
