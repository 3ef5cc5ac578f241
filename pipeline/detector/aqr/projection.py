"""Projection of the queries onto the BEV map and into the images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from operators.grid import CAMERA, LIDAR, TokenGrid
from pipeline.detector.acceleration.async_transfer import constant
from pipeline.detector.transformer.position_encoding import project


@dataclass(frozen=True, eq=False)
class ProjectedQueries:
    """The cells to which the queries of a batch project; made once per forward pass.

    Attributes:
        grid: the key axis: the BEV map, then V camera maps, S = 1 + V segments; or only one of the two.
        cells: (B, Q, S, 2) int64: row and column; 0, 0 where not visible.
        visible: (B, Q, S) bool. BEV: the point lies in the range. Camera: it is the first camera that sees
            the point. A query that no camera sees is visible in none, and one outside the range has no BEV
            cell. (The published code gives the former the top-left corner of the front camera, and the latter
            a cell at the opposite edge of the map.)
    """

    grid: TokenGrid
    cells: Tensor
    visible: Tensor

    @classmethod
    def of(
        cls, points: Tensor, lidar2img: Tensor, point_range: Tensor, pad_hw: tuple[int, int], grid: TokenGrid
    ) -> "ProjectedQueries":
        """Project reference points.

        Args:
            points: (B, Q, 3) normalised by the range; inside it if 0 <= x, y < 1.
            lidar2img: (B, V, 4, 4), LiDAR frame in m -> (u*d, v*d, d, 1), u and v in pixels.
            point_range: (6,) x, y, z minima and maxima in m.
            pad_hw: height and width in pixels of the padded images.
            grid: the BEV map, and V camera maps of one size; or only one of the two.
        """
        points = points.detach()
        cells, visible = [], []
        first, last = grid.segments[0], grid.segments[-1]
        if first.modality == LIDAR:
            # Row from y, column from x.
            cells.append(
                (points[..., :2].flip(-1) * constant((first.rows, first.cols), points.device)).floor()[
                    :, None
                ]
            )
            visible.append(((points[..., :2] >= 0) & (points[..., :2] < 1)).all(dim=-1)[:, None])
        if last.modality == CAMERA:
            low, high = point_range[:3].to(points), point_range[3:].to(points)
            pixels, seen = project(points * (high - low) + low, lidar2img, pad_hw)
            per_pixel = constant((last.rows / pad_hw[0], last.cols / pad_hw[1]), pixels.device)
            cells.append((pixels[..., :2].flip(-1) * per_pixel).floor())
            visible.append(seen & (seen.cumsum(dim=1) == 1))
        shown = torch.cat(visible, dim=1).movedim(1, 2)
        # Masked before the cast, because the cast of an infinite or huge float is undefined.
        found = torch.cat(cells, dim=1).movedim(1, 2).masked_fill(~shown[..., None], 0)
        return cls(grid, found.long(), shown)

    def last(self, queries: int) -> "ProjectedQueries":
        """Return the projection of the last queries only."""
        return ProjectedQueries(self.grid, self.cells[:, -queries:], self.visible[:, -queries:])

    def windows(self, sizes: tuple[int, int]) -> Tensor:
        """Return windows of the given sizes in cells (LiDAR, camera) around the cells: (B, Q, S, 4) int32."""
        return self.grid.windows_around(self.cells, self.visible, sizes)
