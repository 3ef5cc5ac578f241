"""Which box of the ground truth each cell of the decoder's keys shows: the targets of ``token_terms``."""

from dataclasses import dataclass

import torch
from torch import Tensor

from operators.grid import LIDAR, Segment
from pipeline.detector.head.targets import NOTHING, Targets
from pipeline.detector.transformer.position_encoding import Memory, cell_centres

SMALLEST_M = 1.2
"""Boxes count as at least so long and wide: then each holds the centre of a cell of 0.8 m."""

NEAREST_M = 0.5
"""A box with a corner nearer than this to the plane of a camera is in none of its cells."""


@dataclass(frozen=True)
class CellTargets:
    """What each of the K keys of a batch shows.

    Attributes:
        points: (K, 3) normalised centres of BEV cells, z in the middle of the range; NaN for camera cells.
        box: (B, K) int64, place of its box in the ground truth; any place where it shows none.
        labels: (B, K) int64, class of its box, or the number of classes.
        share: (B, K) 1 / number of the cells that show its box, in this map or in the cameras; 0 if none.
    """

    points: Tensor
    box: Tensor
    labels: Tensor
    share: Tensor


def cell_targets(memory: Memory, point_range: Tensor, truth: Targets, num_classes: int) -> CellTargets:
    """Return what the keys show. On a GPU the host does not wait.

    Args:
        memory: the keys, with the cameras.
        point_range: (6,) x, y, z minima and maxima in m.
        truth: the ground truth.
        num_classes: label of a cell that shows no box.
    """
    boxes, given = truth.boxes.nan_to_num(), (truth.labels != NOTHING)[:, None]
    points, parts = [], []
    for group, first in memory.grid.groups:
        cells = (group.stop - group.start) * first.num_keys
        at = boxes.new_full((cells, 3), torch.nan)
        if first.modality == LIDAR:
            at = bev_points(first.rows, first.cols, boxes.device)
            inside, distance = _under(at, point_range, boxes)
        else:
            inside, distance = _seen(memory, first, boxes)
        points.append(at)
        parts.append(_nearest(inside & given, distance, truth, num_classes))
    return CellTargets(torch.cat(points), *(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))


def bev_points(rows: int, cols: int, device: torch.device) -> Tensor:
    """Return the centre of each BEV cell, row by row: (rows * cols, 3), normalised, with z = 0.5."""
    y, x = torch.meshgrid(cell_centres(rows, device), cell_centres(cols, device), indexing="ij")
    return torch.stack([x, y, torch.full_like(x, 0.5)], dim=-1).flatten(0, 1)


def _under(points: Tensor, point_range: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return which boxes cover which BEV cells, and squared distances in m^2 to their centres: (B, N, M)."""
    low, high = point_range[:2], point_range[3:5]
    away = (points[:, :2] * (high - low) + low)[:, None] - boxes[:, None, :, :2]
    along, across = _turned(away, boxes[:, None, :, 6])
    half = boxes[:, None, :, 3:5].clamp(min=SMALLEST_M) / 2
    return (along.abs() <= half[..., 0]) & (across.abs() <= half[..., 1]), away.square().sum(dim=-1)


def _seen(memory: Memory, first: Segment, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return which boxes show in which camera cells, and their depths in m: (B, views * rows * cols, M).

    A box shows in the rectangle around its projected corners.
    """
    matrix = memory.lidar2img.to(boxes)
    corners = _corners(boxes)[:, None]  # (B, 1, M, 8, 3)
    projected = corners @ matrix[:, :, None, :3, :3].mT + matrix[:, :, None, None, :3, 3]
    depth = projected[..., 2]  # (B, V, M, 8)
    pixels = projected[..., :2] / depth.clamp(min=NEAREST_M)[..., None]
    low, high = pixels.amin(dim=-2)[..., None, :, :], pixels.amax(dim=-2)[..., None, :, :]  # (B, V, 1, M, 2)
    u, v = (
        (torch.arange(cells, device=boxes.device) + 0.5)[:, None] * size / cells
        for cells, size in ((first.cols, memory.pad_hw[1]), (first.rows, memory.pad_hw[0]))
    )
    of_u = (u >= low[..., 0]) & (u <= high[..., 0])  # (B, V, cols, M)
    of_v = (v >= low[..., 1]) & (v <= high[..., 1])
    ahead = (depth > NEAREST_M).all(dim=-1)[:, :, None, None]
    inside = (of_v[:, :, :, None] & of_u[:, :, None] & ahead).flatten(1, 3)
    far = depth.mean(dim=-1)[:, :, None].expand(-1, -1, first.num_keys, -1).flatten(1, 2)
    return inside, far


def _corners(boxes: Tensor) -> Tensor:
    """Return the corners (..., 8, 3) in m of boxes (..., 9), z at the centre."""
    halves = torch.tensor([-0.5, 0.5], device=boxes.device)
    local = torch.cartesian_prod(halves, halves, halves) * boxes[..., None, 3:6]
    x, y = _turned(local[..., :2], -boxes[..., 6, None])
    return torch.stack([x, y, local[..., 2]], dim=-1) + boxes[..., None, :3]


def _turned(xy: Tensor, yaw: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y of (..., 2) in axes that are turned by ``yaw`` (rad)."""
    cos, sin = yaw.cos(), yaw.sin()
    return xy[..., 0] * cos + xy[..., 1] * sin, xy[..., 1] * cos - xy[..., 0] * sin


def _nearest(
    inside: Tensor, distance: Tensor, truth: Targets, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``box``, ``labels`` and ``share`` of ``CellTargets``: of the boxes of a cell the nearest one.

    Args:
        inside: (B, N, M) whether a cell shows a box.
        distance: (B, N, M).
        truth: the ground truth.
        num_classes: label of a cell that shows no box.
    """
    least, box = distance.masked_fill(~inside, torch.inf).min(dim=-1)
    found = least.isfinite()
    labels = truth.labels.gather(1, box).where(found, num_classes)
    cells = torch.zeros_like(distance[:, 0]).scatter_add_(1, box, found.to(distance))
    return box, labels, found / cells.gather(1, box).clamp(min=1)
