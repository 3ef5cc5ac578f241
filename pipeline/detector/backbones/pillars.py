"""LiDAR branch without compiled ops, for small machines: points to pillars to a BEV map.

Pillars are computed in ``voxelization``. The modules after them are mmdet3d's.
"""

from typing import Any

import torch
from mmdet3d.models.middle_encoders import PointPillarsScatter
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from pipeline.detector.backbones import pillar_encoder
from pipeline.detector.backbones.frozen import is_frozen, run_part
from pipeline.detector.backbones.voxelization import Cells, Voxels, gather, gather_by_counting, join

MOST_COUNTED = torch.iinfo(torch.int16).max
"""The largest grid whose cells, and one number for "outside", are 16-bit numbers. Those sort fastest."""


DEFAULT_COLUMNS = 4
"""Columns of points that mmdet3d's pillar encoders read unless their config says so."""


class SizeError(ValueError):
    """The sizes in a config contradict each other."""


def pillars_of(clouds: list[Tensor], point_range: Tensor, shape: tuple[int, int], max_points: int) -> Voxels:
    """Sort points into a grid of pillars. The same input gives the same bits.

    A pillar keeps its first ``max_points`` points and drops the rest, like the compiled hard voxeliser. No
    pillar is dropped. Points outside the range and points with a NaN are dropped.

    Args:
        clouds: one (N, C) float tensor per sample, x, y, z first, in m; N may be 0.
        point_range: (6,) x, y, z minima (inclusive) and maxima (exclusive) in m.
        shape: rows and columns of the grid.
        max_points: M, number of points that a pillar keeps.
    """
    low, high = point_range[:3].to(clouds[0]), point_range[3:].to(clouds[0])
    if clouds[0].device.type == "cpu" and shape[0] * shape[1] <= MOST_COUNTED:
        cells = [_cells_of(cloud, low, high, shape) for cloud in clouds]
        return gather_by_counting(clouds, cells, (1, *shape), max_points)
    points, sample = join(clouds)
    cell = _cells_of(points, low, high, shape)
    inside = cell < shape[0] * shape[1]
    place = torch.stack([torch.zeros_like(cell), cell // shape[1], cell % shape[1]], dim=1)
    return gather(Cells(points, sample, place.long(), inside, (1, *shape), len(clouds)), max_points)


def _cells_of(points: Tensor, low: Tensor, high: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the number of every point's pillar, row by row, (P,) int32; rows x columns for a point outside.

    Args:
        points: (P, C).
        low: (3,) x, y, z minima in m.
        high: (3,) x, y, z maxima in m.
        shape: rows and columns of the grid.
    """
    # The sum is finite only if all its terms are. A GPU does not wait to learn it.
    all_finite = not points.is_cuda and bool(points.sum().isfinite())
    inside = points.new_ones(len(points), dtype=torch.bool) if all_finite else points.isfinite().all(dim=1)
    for axis in range(3):
        along = points[:, axis]
        inside &= (along >= low[axis]) & (along < high[axis])
    number = torch.zeros_like(inside, dtype=torch.int32)
    for axis, cells in ((1, shape[0]), (0, shape[1])):  # rows run along y
        along = (points[:, axis] - low[axis]) * (cells / (high[axis] - low[axis]))
        # Rounding can move a point just below the maximum onto it; it belongs to the last cell. Masked before
        # the cast, because the cast of an infinite float is undefined.
        place = along.floor().clamp(max=cells - 1).masked_fill(~inside, 0)
        number = number * cells + place.to(torch.int32)
    return number.masked_fill(~inside, shape[0] * shape[1])


@MODELS.register_module()
class PillarBranch(BaseModule):
    """Points to one BEV map: pillars, mmdet3d's encoder and scatter, SECOND, SECONDFPN.

    Args:
        point_cloud_range: x, y, z minima and maxima in m.
        grid_shape: rows (y) and columns (x) of the pillar grid.
        max_points: number of points kept per pillar.
        voxel_encoder, middle_encoder, backbone, neck: mmdet3d modules. ``voxel_size``, ``point_cloud_range``
            and ``output_shape`` are set from the arguments above.
        init_cfg: see mmengine.

    Raises:
        SizeError: the grid is not two positive numbers, the range is empty, or a size is given twice.
    """

    def __init__(
        self,
        point_cloud_range: list[float],
        grid_shape: tuple[int, int],
        max_points: int,
        voxel_encoder: dict[str, Any],
        middle_encoder: dict[str, Any],
        backbone: dict[str, Any],
        neck: dict[str, Any],
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        rows, cols = grid_shape
        low, high = point_cloud_range[:3], point_cloud_range[3:]
        if rows < 1 or cols < 1 or any(a >= b for a, b in zip(low, high, strict=True)):
            raise SizeError(
                "expected a grid of at least 1 x 1 pillars and minima below maxima, "
                f"got {grid_shape} and {point_cloud_range}"
            )
        given = {"voxel_size", "point_cloud_range"} & set(voxel_encoder)
        ours = given | {"output_shape"} & set(middle_encoder)
        if ours:
            raise SizeError(
                f"{', '.join(sorted(ours))} follow from grid_shape and point_cloud_range; leave them out"
            )
        self.grid_shape = (rows, cols)
        self.max_points = max_points
        self.point_columns = int(voxel_encoder.get("in_channels", DEFAULT_COLUMNS))
        self.register_buffer("point_range", torch.tensor(point_cloud_range), persistent=False)
        size = [(high[0] - low[0]) / cols, (high[1] - low[1]) / rows, high[2] - low[2]]
        encoder = {**voxel_encoder, "voxel_size": size, "point_cloud_range": list(point_cloud_range)}
        self.voxel_encoder = MODELS.build(encoder)
        self.middle_encoder = MODELS.build({**middle_encoder, "output_shape": [rows, cols]})
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck)

    def forward(self, clouds: list[Tensor]) -> Tensor:
        """Encode point clouds, each (N, C) float with N >= 0, as a BEV map (B, C', H, W).

        Raises:
            SizeError: another number of columns than the encoder's ``in_channels``.
        """
        for cloud in clouds:
            if cloud.shape[1] != self.point_columns:
                raise SizeError(
                    f"points have {cloud.shape[1]} columns, pts_branch.voxel_encoder.in_channels is "
                    f"{self.point_columns}; load as many columns (use_dim), or correct the config"
                )
        pillars = pillars_of(clouds, self.point_range, self.grid_shape, self.max_points)
        if self._encodes_by_one_product(pillars.points):
            with torch.no_grad():
                features = pillar_encoder.encode(self.voxel_encoder, pillars)
                canvas = pillar_encoder.scatter(features, pillars, len(clouds), self.grid_shape)
            return run_part(self.neck, run_part(self.backbone, canvas))[0]
        if len(pillars.counts):
            features = self.voxel_encoder(pillars.points, pillars.counts, pillars.coords)
        else:
            features = self._no_features(pillars.points)
        canvas = self.middle_encoder(features, pillars.coords, len(clouds))
        return run_part(self.neck, run_part(self.backbone, canvas))[0]

    def _encodes_by_one_product(self, points: Tensor) -> bool:
        encoder, scatters = self.voxel_encoder, type(self.middle_encoder) is PointPillarsScatter
        on_cpu = points.device.type == "cpu"
        return on_cpu and scatters and is_frozen(encoder) and pillar_encoder.is_one_product(encoder)

    def _no_features(self, points: Tensor) -> Tensor:
        """Return the features of zero pillars, (0, C), because batch norm refuses an empty batch.

        They depend on every parameter of the encoder. So the parameters get gradients of zero, because all
        workers must have gradients of the same parameters.
        """
        anchor = torch.stack([p.sum() for p in self.voxel_encoder.parameters()]).sum() * 0.0
        return points.new_zeros(0, self.middle_encoder.in_channels) + anchor
