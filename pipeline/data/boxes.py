"""Geometry of boxes: points inside a box, and boxes that overlap."""

import numpy as np
from numpy.typing import NDArray


def points_inside(points: NDArray[np.float32], box: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the indices of the points (N, 3 or more) in m inside a box (7 or more), faces included.

    Args:
        points: x, y, z first.
        box: columns as in ``Sample.boxes``.
    """
    box = box.astype(np.float64)
    reach = np.hypot(box[3], box[4]) / 2
    near = np.flatnonzero((np.abs(points[:, 0] - box[0]) <= reach) & (np.abs(points[:, 1] - box[1]) <= reach))
    away = points[near, :3] - box[:3]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    local = np.stack(
        [cos * away[:, 0] + sin * away[:, 1], cos * away[:, 1] - sin * away[:, 0], away[:, 2]], 1
    )
    return near[(np.abs(local) <= box[3:6] / 2).all(axis=1)]


def overlap_bev(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return (M, K) bool: whether boxes (M, 7 or more) and boxes (K, 7 or more) overlap, seen from above.

    Two rectangles do not overlap if and only if one of their four axes separates them (separating axis
    theorem). Boxes that only touch do not overlap.
    """
    a, b = _corners_bev(one)[:, None], _corners_bev(other)[None]  # (M, 1, 4, 2), (1, K, 4, 2)
    met = np.ones((len(one), len(other)), bool)
    for yaw in (one[:, None, 6], other[None, :, 6]):
        for axis in (yaw, yaw + np.pi / 2):
            way = np.stack([np.cos(axis), np.sin(axis)], -1)[..., None, :]
            p, q = (a * way).sum(-1), (b * way).sum(-1)
            met &= (p.max(-1) > q.min(-1)) & (q.max(-1) > p.min(-1))
    return met


def _corners_bev(boxes: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the four corners (M, 4, 2) seen from above."""
    boxes = boxes.astype(np.float64)
    along, across = boxes[:, 3:4] / 2 * [1, 1, -1, -1], boxes[:, 4:5] / 2 * [1, -1, -1, 1]
    cos, sin = np.cos(boxes[:, 6:7]), np.sin(boxes[:, 6:7])
    turned = np.stack([cos * along - sin * across, sin * along + cos * across], -1)
    return np.asarray(turned + boxes[:, None, :2])
