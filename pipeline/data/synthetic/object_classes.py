"""The ten classes and the props of a generated street: size, shape, paint.

The data are made so that one sensor is not enough. Truck and construction vehicle, bus and trailer, bicycle
and motorcycle have the same shape, so LiDAR cannot distinguish six of the ten classes. Their paint differs,
which only a camera sees.
"""

from dataclasses import dataclass

Part = tuple[float, float, float, float, float]
"""A box in the bounding box: back, front, half width, bottom, top; fractions of length, width, height."""

_CAR: tuple[Part, ...] = ((-0.5, 0.5, 0.5, 0.0, 0.58), (-0.34, 0.2, 0.44, 0.58, 1.0))
_MEDIUM: tuple[Part, ...] = (
    (-0.5, 0.5, 0.44, 0.08, 0.3),
    (0.22, 0.5, 0.5, 0.0, 0.84),
    (-0.5, 0.16, 0.5, 0.22, 1.0),
)
_LARGE: tuple[Part, ...] = ((-0.5, 0.5, 0.5, 0.0, 1.0),)
_RIDDEN: tuple[Part, ...] = ((-0.5, 0.5, 0.24, 0.0, 0.6), (-0.2, 0.14, 0.5, 0.36, 1.0))
_PARKED: tuple[Part, ...] = ((-0.5, 0.5, 0.24, 0.0, 0.86), (0.18, 0.32, 0.5, 0.72, 1.0))
_PERSON: tuple[Part, ...] = ((-0.5, 0.5, 0.5, 0.0, 0.84), (-0.2, 0.2, 0.2, 0.84, 1.0))
_CONE: tuple[Part, ...] = (
    (-0.5, 0.5, 0.5, 0.0, 0.1),
    (-0.44, 0.44, 0.44, 0.1, 0.6),
    (-0.3, 0.3, 0.3, 0.6, 1.0),
)
_BARRIER: tuple[Part, ...] = ((-0.5, 0.5, 0.5, 0.0, 0.4), (-0.3, 0.3, 0.5, 0.4, 1.0))
_BOX: tuple[Part, ...] = ((-0.5, 0.5, 0.5, 0.0, 1.0),)

Colour = tuple[int, int, int]
"""BGR, 0-255."""

PLAIN, STRIPES, BANDS, CHECKS, DIAGONALS = range(5)
"""Patterns of the second colour over the first: none, upright, level, chess board, slanted."""


@dataclass(frozen=True)
class Kind:
    """The appearance of an object.

    Attributes:
        category: nuScenes category, or empty for a prop that is not annotated.
        size: mean length, width, height in m.
        parts: solid boxes that fill the bounding box, touching each of its sides.
        colour, second, pattern, period_m: paint.
        reflectance: range of LiDAR reflectance, 0-1; the same for kinds of the same shape.
        glazed: whether the front has a windscreen, which shows which way it faces.
    """

    category: str
    size: tuple[float, float, float]
    parts: tuple[Part, ...]
    colour: Colour
    second: Colour
    pattern: int
    period_m: float
    reflectance: tuple[float, float] = (0.25, 0.7)
    glazed: bool = False


KINDS = {
    "car": Kind("vehicle.car", (4.6, 1.95, 1.7), _CAR, (235, 80, 20), (235, 80, 20), PLAIN, 1.0, glazed=True),
    "truck": Kind(
        "vehicle.truck", (6.8, 2.55, 2.9), _MEDIUM, (40, 190, 30), (20, 130, 10), BANDS, 1.5, glazed=True
    ),
    "construction_vehicle": Kind(
        "vehicle.construction",
        (6.8, 2.55, 2.9),
        _MEDIUM,
        (0, 215, 250),
        (15, 20, 20),
        DIAGONALS,
        2.2,
        glazed=True,
    ),
    "bus": Kind(
        "vehicle.bus.rigid", (11.0, 2.9, 3.4), _LARGE, (20, 20, 225), (20, 10, 130), BANDS, 2.2, glazed=True
    ),
    "trailer": Kind(
        "vehicle.trailer",
        (11.0, 2.9, 3.4),
        _LARGE,
        (250, 245, 245),
        (215, 160, 160),
        STRIPES,
        2.4,
        glazed=True,
    ),
    "motorcycle": Kind(
        "vehicle.motorcycle", (1.95, 0.8, 1.6), _RIDDEN, (230, 20, 200), (160, 10, 120), BANDS, 0.8
    ),
    "bicycle": Kind("vehicle.bicycle", (1.95, 0.8, 1.6), _RIDDEN, (60, 255, 150), (30, 200, 90), BANDS, 0.8),
    "pedestrian": Kind(
        "human.pedestrian.adult", (0.72, 0.68, 1.76), _PERSON, (200, 120, 255), (110, 40, 150), BANDS, 1.76
    ),
    "traffic_cone": Kind(
        "movable_object.trafficcone",
        (0.42, 0.42, 1.05),
        _CONE,
        (0, 90, 255),
        (250, 250, 250),
        BANDS,
        0.5,
        (0.6, 0.95),
    ),
    "barrier": Kind(
        "movable_object.barrier",
        (0.55, 2.5, 1.0),
        _BARRIER,
        (0, 110, 255),
        (245, 245, 245),
        STRIPES,
        1.0,
        (0.6, 0.95),
    ),
    "cart": Kind(
        "movable_object.pushable_pullable", (0.9, 0.7, 0.9), _BOX, (95, 105, 110), (70, 75, 80), CHECKS, 0.4
    ),
    "building": Kind("", (24.0, 10.0, 9.0), _BOX, (150, 165, 180), (95, 105, 120), CHECKS, 3.0, (0.2, 0.4)),
}
"""Kinds by name; the first ten are the detection classes of nuScenes."""

PARKED_CYCLE = (1.95, 0.8, 1.12)
"""Size in m of a two-wheeler without its rider."""

PARKED_CYCLE_PARTS = _PARKED
"""Shape of a two-wheeler without its rider."""

TWINS = (("truck", "construction_vehicle"), ("bus", "trailer"), ("motorcycle", "bicycle"))
"""Classes of one shape; they also share every rule of placement and motion."""
