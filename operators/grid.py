"""BEV and camera cells in segments, and rectangles of cells within them.

A memory of CMT is one list of keys: the BEV map row by row, then every camera's feature map row by
row. A ``TokenGrid`` says where each map begins and how large it is; a *rect* is an inclusive range of
rows and columns within one segment. Nothing here knows of attention.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

LIDAR, CAMERA = 0, 1
"""Modalities of a segment, and positions in a pair of per-modality weights."""

EMPTY_RECT = (0, -1, 0, -1)
"""Row first, row last, column first, column last of a window that holds no key."""


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
        ValueError: a segment is empty, has an unknown modality, or does not begin where the last ended.
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
        """Lay (rows, cols, modality) maps one after the other."""
        segments, offset = [], 0
        for rows, cols, modality in shapes:
            segments.append(Segment(offset, rows, cols, modality))
            offset += rows * cols
        return cls(tuple(segments))

    @classmethod
    def bev_and_cameras(cls, bev: tuple[int, int], cameras: tuple[int, int, int]) -> "TokenGrid":
        """Lay out the memory of CMT: one BEV map, then V camera maps.

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
        """S."""
        return len(self.segments)

    @property
    def groups(self) -> tuple[tuple[slice, Segment], ...]:
        """Runs of neighbouring segments of one size and modality: (which segments, the first of them)."""
        starts = [i for i in range(self.num_segments) if i == 0 or not self._alike(i - 1, i)]
        stops = [*starts[1:], self.num_segments]
        return tuple((slice(i, j), self.segments[i]) for i, j in zip(starts, stops, strict=True))

    def _alike(self, i: int, j: int) -> bool:
        """Say whether two segments have one size and modality."""
        a, b = self.segments[i], self.segments[j]
        return (a.rows, a.cols, a.modality) == (b.rows, b.cols, b.modality)

    def per_segment(self, weight: Tensor) -> Tensor:
        """Spread one number per modality over the segments.

        Args:
            weight: (..., 2): LiDAR, camera.

        Returns:
            (..., S), differentiable in ``weight``.
        """
        if weight.shape[-1] != 2:
            raise ValueError(f"per_segment expects (..., 2) = (LiDAR, camera), got {tuple(weight.shape)}")
        # Slices, not an index tensor: that would be copied to the device, which makes the host wait.
        return torch.stack([weight[..., s.modality] for s in self.segments], dim=-1)

    def rects_around(self, cells: Tensor, visible: Tensor, sizes: tuple[int, int]) -> Tensor:
        """Place a window around one cell per query and segment, and cut it at the segment's borders.

        An odd size w spans -(w-1)/2 .. +(w-1)/2, an even one -(w/2-1) .. +w/2 (facts of AQR).

        Args:
            cells: (B, Q, S, 2) integers: row, column.
            visible: (B, Q, S) bool; where False there is no window.
            sizes: window sizes in cells: LiDAR, camera.

        Returns:
            (B, Q, S, 4) int32: row first, row last, column first, column last, inclusive;
            ``EMPTY_RECT`` where not visible or where the cell lies outside the segment.
        """
        expected = (*cells.shape[:2], self.num_segments)
        if cells.ndim != 4 or tuple(cells.shape) != (*expected, 2) or tuple(visible.shape) != expected:
            raise ValueError(
                f"rects_around expects cells (B, Q, {self.num_segments}, 2) and visible of the same B, Q, S, "
                f"got {tuple(cells.shape)} and {tuple(visible.shape)}"
            )
        if min(sizes) < 1:
            raise ValueError(f"window sizes must be at least 1 cell, got {sizes}")
        rects = torch.empty((*expected, 4), dtype=torch.int32, device=cells.device)
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
                rects[:, :, which, side] = torch.where(inside, value, empty).to(torch.int32)
        return rects

    def whole_rects(self, batch: int, queries: int, device: torch.device) -> Tensor:
        """Return rects that cover every segment, (B, Q, S, 4) int32, the same memory for every query."""
        rects = torch.zeros((self.num_segments, 4), dtype=torch.int32, device=device)
        for which, segment in self.groups:
            rects[which, 1] = segment.rows - 1
            rects[which, 3] = segment.cols - 1
        return rects.expand(batch, queries, -1, -1)

    def inside(self, rects: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Say per group of segments which rows and which columns a rect holds.

        Yields:
            (which segments, rows held (B, Q, n, rows) bool, columns held (B, Q, n, cols) bool).
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
        """Return segment, row and column of every key: three (K,) int32 tensors on ``device``."""
        if torch.compiler.is_compiling():
            return _key_tables(self, device)
        return _cached_key_tables(self, device)


def _key_tables(grid: TokenGrid, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Compute segment, row and column of every key."""
    ids, rows, cols = [], [], []
    for i, segment in enumerate(grid.segments):
        cell = torch.arange(segment.num_keys, dtype=torch.int32, device=device)
        ids.append(torch.full_like(cell, i))
        rows.append(cell // segment.cols)
        cols.append(cell % segment.cols)
    return torch.cat(ids), torch.cat(rows), torch.cat(cols)


# A few kB per grid; some forty small kernels a call without it. 16: more grids than any one model has.
# Normal tensors, also when an evaluation asks first: autograd cannot save those of inference mode.
_cached_key_tables = lru_cache(maxsize=16)(torch.inference_mode(False)(_key_tables))
