"""The key axis as segments of BEV and camera cells, and rectangles of cells in them.

The memory of CMT is one list of keys: the BEV map row by row, then every camera's feature map row by row. A
``TokenGrid`` holds the offset and size of each map. A *rect* is an inclusive range of rows and columns in one
segment; a *window* is the rect around a query's projection. This module does not depend on attention.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

LIDAR, CAMERA = 0, 1
"""Modality of a segment. Also the index into a pair of weights, one per modality."""

EMPTY_RECT = (0, -1, 0, -1)
"""First row, last row, first column, last column of a rect without keys."""


@dataclass(frozen=True)
class Segment:
    """One feature map among the keys.

    Attributes:
        offset: index of its first key.
        rows: height in cells.
        cols: width in cells.
        modality: ``LIDAR`` (0) or ``CAMERA`` (1).
    """

    offset: int
    rows: int
    cols: int
    modality: int

    @property
    def num_keys(self) -> int:
        """Number of cells."""
        return self.rows * self.cols


@dataclass(frozen=True)
class TokenGrid:
    """The key axis of an attention call, cut into segments that follow each other without a gap.

    Attributes:
        segments: in key order.

    Raises:
        ValueError: a segment is empty, has an unknown modality, or does not begin where the previous one
            ends.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        """Check that the segments tile the key axis."""
        expected = 0
        for i, s in enumerate(self.segments):
            if s.rows < 1 or s.cols < 1 or s.modality not in (LIDAR, CAMERA):
                raise ValueError(f"segment {i}: expected rows and cols >= 1 and modality 0 or 1, got {s}")
            if s.offset != expected:
                raise ValueError(
                    f"segment {i}: expected offset {expected} (where the last one ended), got {s.offset}"
                )
            expected += s.num_keys
        if not self.segments:
            raise ValueError("a token grid needs at least one segment, got none")

    @classmethod
    def of(cls, *shapes: tuple[int, int, int]) -> "TokenGrid":
        """Make the grid of maps (rows, cols, modality), one after the other."""
        segments, offset = [], 0
        for rows, cols, modality in shapes:
            segments.append(Segment(offset, rows, cols, modality))
            offset += rows * cols
        return cls(tuple(segments))

    @classmethod
    def bev_and_cameras(cls, bev: tuple[int, int], cameras: tuple[int, int, int]) -> "TokenGrid":
        """Make the grid of CMT's memory: one BEV map, then V camera maps.

        Args:
            bev: (H, W) of the BEV map.
            cameras: (V, h, w): number of cameras, and the size of each feature map.
        """
        views, height, width = cameras
        return cls.of((*bev, LIDAR), *[(height, width, CAMERA)] * views)

    @property
    def num_keys(self) -> int:
        """K, the number of cells of all segments."""
        return sum(s.num_keys for s in self.segments)

    @property
    def num_segments(self) -> int:
        """S, the number of segments."""
        return len(self.segments)

    @property
    def groups(self) -> tuple[tuple[slice, Segment], ...]:
        """Runs of segments with the same size and modality, as (slice of segments, the first one)."""
        starts = [i for i in range(self.num_segments) if i == 0 or not self._alike(i - 1, i)]
        stops = [*starts[1:], self.num_segments]
        return tuple((slice(i, j), self.segments[i]) for i, j in zip(starts, stops, strict=True))

    def _alike(self, i: int, j: int) -> bool:
        """Whether two segments have the same size and modality."""
        a, b = self.segments[i], self.segments[j]
        return (a.rows, a.cols, a.modality) == (b.rows, b.cols, b.modality)

    def per_segment(self, weight: Tensor) -> Tensor:
        """Return for every segment the weight of its modality.

        Args:
            weight: (..., 2): LiDAR, camera.

        Returns:
            (..., S), differentiable in ``weight``.

        Raises:
            ValueError: another last size than 2.
        """
        if weight.shape[-1] != 2:
            raise ValueError(f"per_segment expects (..., 2) = (LiDAR, camera), got {tuple(weight.shape)}")
        # Slices, because an index tensor would be copied to the device, and the host would wait for that.
        return torch.stack([weight[..., s.modality] for s in self.segments], dim=-1)

    def windows_around(self, cells: Tensor, visible: Tensor, sizes: tuple[int, int]) -> Tensor:
        """Return the window around one cell per query and segment, cut at the segment's borders.

        As in AQR, an odd size w spans -(w-1)/2 .. +(w-1)/2, and an even one -(w/2-1) .. +w/2.

        Args:
            cells: (B, Q, S, 2) integers: row, column.
            visible: (B, Q, S) bool; no window where False.
            sizes: window sizes in cells: LiDAR, camera.

        Returns:
            (B, Q, S, 4) int32: first row, last row, first column, last column, inclusive. ``EMPTY_RECT``
            where the cell is not visible or lies outside the segment.

        Raises:
            ValueError: shapes that do not fit together, or a size below 1.
            TypeError: cells that are no whole numbers.
        """
        expected = (*cells.shape[:2], self.num_segments)
        if cells.ndim != 4 or tuple(cells.shape) != (*expected, 2) or tuple(visible.shape) != expected:
            raise ValueError(
                f"windows_around expects cells (B, Q, {self.num_segments}, 2) and visible of the same "
                f"B, Q, S, got {tuple(cells.shape)} and {tuple(visible.shape)}"
            )
        if cells.is_floating_point():
            raise TypeError(
                f"windows_around expects whole cells (row, column), got {cells.dtype}, which would be cut "
                "off; take cells.floor().long()"
            )
        if min(sizes) < 1:
            raise ValueError(f"window sizes must be at least 1 cell, got {sizes}")
        windows = torch.empty((*expected, 4), dtype=torch.int32, device=cells.device)
        for which, segment in self.groups:
            before, after = (sizes[segment.modality] - 1) // 2, sizes[segment.modality] // 2
            row, col = cells[:, :, which, 0], cells[:, :, which, 1]
            inside = (
                visible[:, :, which] & (row >= 0) & (row < segment.rows) & (col >= 0) & (col < segment.cols)
            )
            sides = (
                (row - before).clamp(min=0),
                (row + after).clamp(max=segment.rows - 1),
                (col - before).clamp(min=0),
                (col + after).clamp(max=segment.cols - 1),
            )
            for side, (value, empty) in enumerate(zip(sides, EMPTY_RECT, strict=True)):
                windows[:, :, which, side] = torch.where(inside, value, empty).to(torch.int32)
        return windows

    def whole_rects(self, batch: int, queries: int, device: torch.device) -> Tensor:
        """Return the rects of whole segments, (B, Q, S, 4) int32; all queries share one memory."""
        rects = torch.zeros((self.num_segments, 4), dtype=torch.int32, device=device)
        for which, segment in self.groups:
            rects[which, 1] = segment.rows - 1
            rects[which, 3] = segment.cols - 1
        return rects.expand(batch, queries, -1, -1)

    def inside(self, rects: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Iterate over ``groups`` and tell which rows and columns lie inside the rects.

        Args:
            rects: (B, Q, S, 4) int32.

        Yields:
            (slice of n segments, rows inside (B, Q, n, rows) bool, columns inside (B, Q, n, cols) bool).
        """
        for which, segment in self.groups:
            sides = rects[:, :, which].unsqueeze(-2)  # (B, Q, n, 1, 4)
            rows = torch.arange(segment.rows, device=rects.device)
            cols = torch.arange(segment.cols, device=rects.device)
            yield (
                which,
                (rows >= sides[..., 0]) & (rows <= sides[..., 1]),
                (cols >= sides[..., 2]) & (cols <= sides[..., 3]),
            )

    def key_tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return the segment, row and column of every key, as three (K,) int32 tensors on ``device``."""
        if torch.compiler.is_compiling():
            return _key_tables(self, device)
        return _cached_key_tables(self, device)


def _key_tables(grid: TokenGrid, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the segment, row and column of every key."""
    ids, rows, cols = [], [], []
    for i, segment in enumerate(grid.segments):
        cell = torch.arange(segment.num_keys, dtype=torch.int32, device=device)
        ids.append(torch.full_like(cell, i))
        rows.append(cell // segment.cols)
        cols.append(cell % segment.cols)
    return torch.cat(ids), torch.cat(rows), torch.cat(cols)


# A few kB per grid; without the cache every call runs some forty small kernels. No model has 16 grids.
# Inference mode is left, because autograd cannot save tensors that were made in it.
_cached_key_tables = lru_cache(maxsize=16)(torch.inference_mode(False)(_key_tables))


def static_size(size: int) -> int:
    """Return a size as a plain int.

    Under ``torch.compile`` a size may be a symbol, which stands for all values. Objections and tables of
    tiles need a value. This fixes the symbol: the graph is traced anew for another value.
    """
    return len(range(size)) if torch.compiler.is_compiling() else int(size)
