"""Hard voxelisation of points by sorting, in plain PyTorch. The result is the same on every run.

mmdet3d and spconv have compiled ops for it, whose order of voxels on a GPU changes from run to run.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

LARGEST_INT32 = 2**31 - 1


class VoxelError(ValueError):
    """The sizes of a voxel grid contradict each other, or points do not fit the config."""


@dataclass(frozen=True)
class Voxels:
    """The occupied voxels of a batch, sorted by sample, level, row and column.

    Attributes:
        points: (N, M, C) float, the first M points of each voxel in their order, padded with zeros.
        counts: (N,) int64, number of points kept, 1..M.
        coords: (N, 4) int64: sample, level (z), row (y), column (x), in the order of mmdet3d.
    """

    points: Tensor
    counts: Tensor
    coords: Tensor


@dataclass(frozen=True)
class Cells:
    """The grid cell of every point of a batch.

    Attributes:
        points: (P, C) points of all samples, one sample after the other.
        sample: (P,) int64, index of the sample.
        cell: (P, 3) int64: level, row, column; undefined where not inside.
        inside: (P,) bool, whether the point lies in the grid.
        shape: levels, rows and columns of the grid.
        batch: number of samples.
    """

    points: Tensor
    sample: Tensor
    cell: Tensor
    inside: Tensor
    shape: tuple[int, int, int]
    batch: int


def join(clouds: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Concatenate clouds (N, C), and return the points and the index of each point's sample."""
    points = torch.cat(clouds)
    # The host knows the lengths. With repeat_interleave it would wait for the device.
    sample = torch.cat([points.new_full((len(c),), b, dtype=torch.long) for b, c in enumerate(clouds)])
    return points, sample


def gather(cells: Cells, max_points: int, max_voxels: int | None = None) -> Voxels:
    """Collect the points of each cell. The host waits for the device to learn the number of voxels.

    Args:
        cells: the cell of every point.
        max_points: M; a voxel keeps its first M points.
        max_voxels: a sample keeps at most so many voxels, those whose first points come first; None: all.
    """
    levels, rows, cols = cells.shape
    nowhere = cells.batch * levels * rows * cols  # sorts behind every cell
    level, row, col = cells.cell.unbind(1)
    key = ((cells.sample * levels + level) * rows + row) * cols + col
    key = torch.where(cells.inside, key, nowhere)
    if nowhere <= LARGEST_INT32:
        key = key.int()  # a sort of half as many bytes
    key, order = torch.sort(key, stable=True)
    begins = key < nowhere
    inside = begins.sum()
    begins[1:] &= key[1:] != key[:-1]
    first = begins.nonzero().squeeze(1)
    counts = torch.cat([first[1:], inside[None]])[: len(first)] - first
    if max_voxels is not None and len(first) > max_voxels:
        sample = key[first] // (levels * rows * cols)
        kept = _earliest(order[first], sample, (len(order), cells.batch), max_voxels)
        kept = kept.nonzero().squeeze(1)  # here, because the host waits for it
        first, counts = first[kept], counts[kept]
    counts = counts.clamp(max=max_points)
    points = _first_points(cells.points, order, first, counts, max_points)
    at = key[first].long()
    coords = torch.stack(
        [at // (levels * rows * cols), at // (rows * cols) % levels, at // cols % rows, at % cols], dim=1
    )
    return Voxels(points, counts, coords)


def gather_by_counting(
    clouds: list[Tensor], cells: list[Tensor], shape: tuple[int, int, int], max_points: int
) -> Voxels:
    """Collect the points of each cell of a small grid, on a CPU.

    It counts the points of every cell of the grid, and sorts 16-bit numbers. ``gather`` sorts wider ones.

    Args:
        clouds: one (P, C) float tensor per sample.
        cells: per sample (P,) int32: the number of every point's cell, by level, row and column; the number
            of cells for a point outside. The number of cells fits into 16 bits with a sign.
        shape: levels, rows and columns of the grid.
        max_points: M; a voxel keeps its first M points.
    """
    levels, rows, cols = shape
    total = levels * rows * cols
    parts = []
    for sample, (points, cell) in enumerate(zip(clouds, cells, strict=True)):
        order = torch.sort(cell.to(torch.int16), stable=True).indices
        every = torch.bincount(cell, minlength=total)[:total]
        at = every.nonzero().squeeze(1)
        counts, first = every[at].clamp(max=max_points), (every.cumsum(0) - every)[at]
        coords = [torch.full_like(at, sample), at // (rows * cols), at // cols % rows, at % cols]
        kept = _first_points(points, order, first, counts, max_points)
        parts.append((kept, counts, torch.stack(coords, dim=1)))
    return Voxels(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _first_points(points: Tensor, order: Tensor, first: Tensor, counts: Tensor, most: int) -> Tensor:
    """Return the first points of every voxel, (N, M, C), padded with zeros.

    Args:
        points: (P, C).
        order: points sorted by voxel, (P,) or more.
        first: (N,) place in ``order`` of each voxel's first point.
        counts: (N,) number of points that a voxel keeps.
        most: M.
    """
    slot = torch.arange(most, device=first.device)
    place = (first[:, None] + slot).clamp(max=max(len(order) - 1, 0))
    filled = slot < counts[:, None]
    return torch.where(filled[..., None], points[order[place]], 0)


def _earliest(first_point: Tensor, sample: Tensor, sizes: tuple[int, int], most: int) -> Tensor:
    """Return (N,) bool: whether a voxel is among the first ``most`` of its sample.

    Args:
        first_point: (N,) index of each voxel's first point among all points.
        sample: (N,) index of the sample, ascending.
        sizes: number of all points, number of samples.
        most: number of voxels of a sample that are kept.
    """
    points, batch = sizes
    begins = torch.zeros(points, dtype=torch.int32, device=sample.device)
    begins[first_point] = 1
    rank = begins.cumsum(0)[first_point] - 1  # points are ordered by sample, so voxels are too
    before = torch.searchsorted(sample, torch.arange(batch, dtype=sample.dtype, device=sample.device))
    return rank - before[sample] < most


class VoxelLayer(nn.Module):
    """Hard voxelisation as in CMT, with limits on the points per voxel and on the voxels per sample.

    A sample with more voxels than ``max_voxels`` keeps those whose first points come first. (In training the
    points are shuffled.) Points outside the range or the grid, and points that are not finite, are dropped.

    Args:
        voxel_size: size of a voxel along x, y, z, in m.
        point_cloud_range: x, y, z minima (inclusive) and maxima (exclusive) in m.
        max_num_points: number of points kept per voxel.
        max_voxels: number of voxels kept per sample: in training, in evaluation.
        num_point_features: number of columns of the points.
        sparse_shape: levels, rows and columns of the middle encoder's grid; points beyond it are dropped.

    Raises:
        VoxelError: a size is not positive, or the range is empty.
    """

    def __init__(
        self,
        voxel_size: list[float],
        point_cloud_range: list[float],
        max_num_points: int,
        max_voxels: tuple[int, int],
        num_point_features: int,
        sparse_shape: list[int],
    ) -> None:
        super().__init__()
        low, high = point_cloud_range[:3], point_cloud_range[3:]
        empty = any(a >= b for a, b in zip(low, high, strict=True))
        if empty or min(*voxel_size, max_num_points, *max_voxels) <= 0:
            raise VoxelError(
                "pts_voxel_layer: expected positive sizes and numbers and minima below maxima, got "
                f"voxel_size={voxel_size}, max_num_points={max_num_points}, max_voxels={max_voxels}, "
                f"point_cloud_range={point_cloud_range}"
            )
        spans = [round((b - a) / size) for a, b, size in zip(low, high, voxel_size, strict=True)]
        levels, rows, cols = (
            min(n, m) for n, m in zip(reversed(spans), sparse_shape, strict=True)
        )  # x, y, z to z, y, x
        self.shape = (levels, rows, cols)
        self.max_num_points, self.num_point_features = max_num_points, num_point_features
        self.max_voxels = (int(max_voxels[0]), int(max_voxels[1]))
        self.low: Tensor
        self.size: Tensor
        self.register_buffer("low", torch.tensor(low), persistent=False)
        self.register_buffer("size", torch.tensor(voxel_size), persistent=False)

    def forward(self, clouds: list[Tensor]) -> Voxels:
        """Sort point clouds into voxels.

        Args:
            clouds: per sample (N, C) float, x, y, z first, in m; N may be 0.

        Raises:
            VoxelError: another number of columns than ``num_point_features``.
        """
        for cloud in clouds:
            if cloud.shape[1] != self.num_point_features:
                raise VoxelError(
                    f"points have {cloud.shape[1]} columns, pts_voxel_layer.num_point_features is "
                    f"{self.num_point_features}; load as many columns (use_dim), or correct the config"
                )
        points, sample = join(clouds)
        # In single precision and by division, so that points on an edge get the published voxeliser's cell.
        place = ((points[:, :3].float() - self.low) / self.size).floor().flip(1)
        inside = points.isfinite().all(dim=1)
        for axis, cells in enumerate(self.shape):
            inside &= (place[:, axis] >= 0) & (place[:, axis] < cells)
        # Masked before the cast, because the cast of an infinite float is undefined.
        cell = place.masked_fill(~inside[:, None], 0).long()
        cells_of_points = Cells(points, sample, cell, inside, self.shape, len(clouds))
        return gather(cells_of_points, self.max_num_points, self.max_voxels[0 if self.training else 1])
