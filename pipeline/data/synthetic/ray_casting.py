"""Ray caster for both sensors, so that occlusion is the same for both.

An object is a union of upright boxes. A sensor is an origin and a grid of directions. Each object is tested
only in the window of the grid where it can be.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.synthetic.world import World

ROOM_M = 0.03
"""Distance of annotated boxes from the surface, so that most points stay inside with range noise of 2 cm."""

Floats = NDArray[np.float32]
Window = tuple[int, slice, slice]
"""Object, rows, columns: the part of the grid in which the object can be."""


@dataclass(frozen=True)
class Solids:
    """All objects of one moment in the ego frame. A objects, P parts.

    Attributes:
        centre: (A, 3) centre of the bounding box, in m.
        half: (A, 3) half of length, width, height, in m.
        yaw: (A,) heading in rad.
        part_centre, part_half: (P, 3) the parts in the frame of their object (origin: its centre).
        first: (A + 1,) index of each object's first part.
    """

    centre: NDArray[np.float64]
    half: NDArray[np.float64]
    yaw: NDArray[np.float64]
    part_centre: Floats
    part_half: Floats
    first: NDArray[np.int64]

    def corners(self) -> NDArray[np.float64]:
        """Return (A, 8, 3) corners of the bounding boxes, in the ego frame."""
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        local = signs * self.half[:, None]
        cos, sin = np.cos(self.yaw)[:, None], np.sin(self.yaw)[:, None]
        turned = np.stack(
            [
                cos * local[..., 0] - sin * local[..., 1],
                sin * local[..., 0] + cos * local[..., 1],
                local[..., 2],
            ],
            axis=-1,
        )
        return turned + self.centre[:, None]


@dataclass(frozen=True)
class Hits:
    """The first hits of the rays of a grid with R rows and C columns.

    Attributes:
        depth: (R, C) float32, distance in lengths of the ray's direction; inf without a hit.
        actor: (R, C) int32, index of the object; -1 for none or the ground.
        axis: (R, C) int8, local axis of the face: 0 front or back, 1 side, 2 top.
        seen: (A,) int64, number of rays that hit an object first.
        covered: (A,) int64, number of rays that would hit it without other objects.
    """

    depth: Floats
    actor: NDArray[np.int32]
    axis: NDArray[np.int8]
    seen: NDArray[np.int64]
    covered: NDArray[np.int64]


def solids_at(world: World, time_s: float) -> Solids:
    """Return the objects of a world at a time, in the ego frame."""
    ego_s, ego_d, ego_yaw = world.ego_at(time_s)
    poses = np.array([actor.at(time_s) for actor in world.actors])
    sizes = np.array([actor.size for actor in world.actors])
    ahead, left = poses[:, 0] - ego_s, poses[:, 1] - ego_d
    cos, sin = np.cos(ego_yaw), np.sin(ego_yaw)
    centre = np.stack([cos * ahead + sin * left, cos * left - sin * ahead, sizes[:, 2] / 2], axis=1)
    shapes = np.array([part for actor in world.actors for part in actor.parts])
    counts = [len(actor.parts) for actor in world.actors]
    part_centre, part_half = _place_parts(shapes, np.repeat(sizes, counts, axis=0))
    return Solids(
        centre=centre,
        half=sizes / 2,
        yaw=poses[:, 2] - ego_yaw,
        part_centre=part_centre,
        part_half=part_half,
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def _place_parts(shapes: NDArray[np.float64], sizes: NDArray[np.float64]) -> tuple[Floats, Floats]:
    """Return centre and half size (P, 3) of parts in m, from fractions (P, 5) of an object of size (P, 3)."""
    back, front, side, bottom, top = shapes.T
    fractions = np.stack([(back + front) / 2, 0 * side, (bottom + top) / 2 - 0.5], axis=1)
    half = np.stack([(front - back) / 2, side, (top - bottom) / 2], axis=1) * sizes
    half[:, :2] -= ROOM_M
    return (fractions * sizes).astype(np.float32), half.astype(np.float32)


def cast(
    origin: Floats, directions: Floats, ground: Floats, solids: Solids, windows: Iterable[Window]
) -> Hits:
    """Return the first hits of rays.

    Args:
        origin: (3,) in the ego frame, m.
        directions: (R, C, 3), not necessarily of length 1.
        ground: (R, C) depth of the ground along each ray; inf where it does not meet it.
        solids: the objects.
        windows: where each object can be; an object may have several windows.
    """
    depth = ground.copy()
    actor = np.full(depth.shape, -1, np.int32)
    axis = np.full(depth.shape, 2, np.int8)
    covered = np.zeros(len(solids.yaw), np.int64)
    for index, rows, columns in windows:
        near, face = _enter(origin, directions[rows, columns], solids, index)
        hit = np.isfinite(near)
        covered[index] += np.count_nonzero(hit)
        first = near < depth[rows, columns]
        np.copyto(depth[rows, columns], near, where=first)
        np.copyto(actor[rows, columns], np.int32(index), where=first)
        np.copyto(axis[rows, columns], face, where=first)
    seen = np.bincount(actor[actor >= 0], minlength=len(solids.yaw)).astype(np.int64)
    return Hits(depth, actor, axis, seen, covered)


def _enter(origin: Floats, directions: Floats, solids: Solids, index: int) -> tuple[Floats, NDArray[np.int8]]:
    """Return where rays enter an object (inf if they miss it) and through which face; slab test."""
    cos, sin = np.float32(np.cos(solids.yaw[index])), np.float32(np.sin(solids.yaw[index]))
    x, y, z = (origin - solids.centre[index]).astype(np.float32)
    start = np.array([cos * x + sin * y, cos * y - sin * x, z], np.float32)
    dx, dy, dz = directions[..., 0], directions[..., 1], directions[..., 2]
    way = np.stack([cos * dx + sin * dy, cos * dy - sin * dx, dz])
    way[way == 0] = 1e-9  # a ray along a face: no division by zero, and 1e-9 of 100 m is nothing
    per_way = 1 / way
    size = np.abs(per_way)
    best = np.full(dx.shape, np.inf, np.float32)
    face = np.zeros(dx.shape, np.int8)
    for part in range(solids.first[index], solids.first[index + 1]):
        middle = [way * span for way, span in zip(per_way, solids.part_centre[part] - start, strict=True)]
        reach = [way * half for way, half in zip(size, solids.part_half[part], strict=True)]
        x, y, z = (there - half for there, half in zip(middle, reach, strict=True))
        enter = np.maximum(np.maximum(x, y), z)
        ends = [there + half for there, half in zip(middle, reach, strict=True)]
        leave = np.minimum(np.minimum(ends[0], ends[1]), ends[2])
        closer = (enter < leave) & (enter > 0) & (enter < best)
        np.copyto(best, enter, where=closer)
        np.copyto(face, np.where(x == enter, 0, np.where(y == enter, 1, 2)).astype(np.int8), where=closer)
    return best, face
