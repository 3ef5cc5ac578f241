"""Position encodings of BEV cells, camera pixels and queries.

The formulas are those of CMT (arXiv 2301.01283; repository junjie18/CMT). They are computed in float32, also
under autocast: half precision cannot represent half a pixel at coordinate 1600.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from operators import TokenGrid
from pipeline.detector.acceleration.async_transfer import upload

CLAMP = 1e-5  # inverse_sigmoid clamps at this distance from 0 and 1, as in mmdet
DEPTH_GUARD = 1e-6  # metres added to a projected depth to avoid a division by zero (CMT)
NEAREST_DEPTH = 1.0  # metres: the first depth sample (CMT)


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Return log(x / (1 - x)), with x clamped to [0, 1], and x and 1 - x to at least ``CLAMP``."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=CLAMP) / (1 - x).clamp(min=CLAMP))


def sine_embedding(coordinate: Tensor, dims: int) -> Tensor:
    """Embed one normalised coordinate: sines in even channels, cosines in odd ones.

    The wavelengths are ``1 + 2 * (i // 2) / dims``, from 1 to almost 2. They do not grow exponentially,
    because CMT has a temperature parameter and does not use it. The published weights need it so.

    Args:
        coordinate: (...) in [0, 1].
        dims: number of channels of the result, even.

    Returns:
        (..., dims).
    """
    wavelength = 1 + torch.arange(0, dims, 2, dtype=coordinate.dtype, device=coordinate.device) / dims
    phase = 2 * math.pi * coordinate[..., None] / wavelength
    return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(-2)


def sine_embedding_2d(xy: Tensor, dims: int) -> Tensor:
    """Embed (..., 2) points x, y as (..., 2 * dims): y first, then x, as CMT does."""
    return torch.cat([sine_embedding(xy[..., 1], dims), sine_embedding(xy[..., 0], dims)], dim=-1)


def cell_centres(cells: int, device: torch.device | str | None = None) -> Tensor:
    """Return the centres of ``cells`` equal cells on [0, 1], (cells,) float32."""
    return (torch.arange(cells, device=device, dtype=torch.float32) + 0.5) / cells


class PositionMlp(nn.Sequential):
    """Two linear layers over coordinates; parameters are named ``0`` and ``2`` as in CMT's checkpoints."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    @property
    def first(self) -> nn.Linear:
        """The first linear layer."""
        return cast(nn.Linear, self[0])

    def rest(self, hidden: Tensor) -> Tensor:
        """Run everything after the first layer."""
        return cast(Tensor, self[2](self[1](hidden)))


def embed_bev_cells(mlp: PositionMlp, rows: int, cols: int) -> Tensor:
    """Return the position embedding of every BEV cell, row by row.

    The column is divided by the number of columns, and the row by the number of rows. (CMT swaps the two,
    which makes no difference on square grids.) The input of the first linear layer is the concatenation of a
    row and a column embedding. So the layer is computed once per row and once per column, and the results are
    added.

    Args:
        mlp: with 2 * D inputs and D outputs.
        rows: rows of the BEV grid, along y.
        cols: columns of the BEV grid, along x.

    Returns:
        (rows * cols, D).
    """
    first = mlp.first
    dims = first.in_features // 2
    of_y, of_x = first.weight[:, :dims], first.weight[:, dims:]
    device = first.weight.device
    y = sine_embedding(cell_centres(rows, device), dims) @ of_y.T
    x = sine_embedding(cell_centres(cols, device), dims) @ of_x.T + first.bias
    return mlp.rest(y[:, None] + x).flatten(0, 1)


@dataclass(frozen=True)
class Cameras:
    """Projections of the cameras of a batch, on the device of the model.

    Attributes:
        lidar2img: (B, V, 4, 4) float64, LiDAR frame in m -> (u*d, v*d, d, 1), u and v in pixels.
        inverse: (B, V, 3, 4) float64, the first three rows of the inverse of ``lidar2img``.
    """

    lidar2img: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, lidar2img: Tensor, device: torch.device) -> "Cameras":
        """Invert the projections where they are (usually on the host), and copy both to the device."""
        # In double precision: with a principal point of 800 pixels, single precision loses 3 digits.
        inverse = torch.linalg.inv(lidar2img.double())[..., :3, :]
        return cls(upload(lidar2img, device), upload(inverse, device))


class Rays:
    """Viewing rays of all cameras, sampled in depth, in coordinates normalised by the range.

    A pixel (u, v) at depth d is the point ``inv(lidar2img) @ (u*d, v*d, d, 1)``. So the samples of a ray are
    an affine function of (u, v, 1), and so is the output of a linear layer on them. ``hidden`` therefore
    applies that layer to the few coefficients of each camera instead of to every token.

    Attributes:
        basis: (B, V, 4, 3 * depths) float32. ``(u, v, w, 1) @ basis`` with w = 1 are the samples of a ray, as
            x, y, z per depth.
    """

    def __init__(self, inverse: Tensor, point_range: Tensor, depths: int):
        """Sample the rays.

        Args:
            inverse: (B, V, 3, 4) float64, see ``Cameras``.
            point_range: (6,) x, y, z minima and maxima in m.
            depths: number of samples, evenly from 1 m to the far end of the range along x.
        """
        low, high = point_range[:3].double(), point_range[3:].double()
        spread = torch.arange(depths, device=low.device, dtype=torch.float64) / depths
        depth = NEAREST_DEPTH + spread * (high[0] - NEAREST_DEPTH)
        direction = (inverse[..., :3] / (high - low)[:, None]).mT  # (B, V, 3: u v w, 3: x y z)
        origin = (inverse[..., 3] - low) / (high - low)  # (B, V, 3)
        along = (direction[..., None, :] * depth[:, None]).flatten(-2)
        start = origin[..., None, :].expand(*origin.shape[:-1], depths, 3).flatten(-2)
        self.basis = torch.cat([along, start[..., None, :]], dim=-2).float()

    def hidden(self, mlp: PositionMlp, pixels: Tensor) -> Tensor:
        """Run the first layer of ``mlp`` on the rays through some pixels.

        Args:
            mlp: with 3 * depths inputs.
            pixels: (B or 1, 1 or V, N, 3) as u, v, w.

        Returns:
            (B, V, N, hidden).
        """
        first = mlp.first
        coefficients = self.basis @ first.weight.T  # (B, V, 4, hidden)
        return pixels @ coefficients[..., :3, :] + (coefficients[..., 3:, :] + first.bias)

    def embed_cells(self, mlp: PositionMlp, rows: int, cols: int, pad_hw: tuple[int, int]) -> Tensor:
        """Return the position embedding of every camera cell.

        The position of a cell is its top-left pixel, without half a pixel added, as in CMT.

        Args:
            mlp: with 3 * depths inputs and D outputs.
            rows: rows of the feature maps.
            cols: columns of the feature maps.
            pad_hw: height and width in pixels of the padded images.

        Returns:
            (B, V * rows * cols, D), ordered by view, row, column.
        """
        device = self.basis.device
        v = torch.arange(rows, device=device, dtype=torch.float32) * pad_hw[0] / rows
        u = torch.arange(cols, device=device, dtype=torch.float32) * pad_hw[1] / cols
        v, u = torch.meshgrid(v, u, indexing="ij")
        pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1).reshape(1, 1, rows * cols, 3)
        return mlp.rest(self.hidden(mlp, pixels)).flatten(1, 2)

    def embed_points(self, mlp: PositionMlp, pixels: Tensor, visible: Tensor) -> Tensor:
        """Return the camera part of the query embedding: the sum over the views that see the query.

        A query that no camera sees gets zero. On a CPU only visible pairs go through the second layer, about
        one view in six. A GPU computes all pairs, because the host would have to wait to learn which are
        visible.

        Args:
            mlp: as for ``embed_cells``.
            pixels: (B, V, Q, 3): u, v, and the depth divided by its detached value.
            visible: (B, V, Q) bool.

        Returns:
            (B, Q, D).
        """
        hidden = self.hidden(mlp, pixels)
        if hidden.is_cuda:
            return mlp.rest(hidden).masked_fill(~visible[..., None], 0).sum(dim=1)
        embedded = mlp.rest(hidden[visible])
        out = embedded.new_zeros(*visible.shape, embedded.shape[-1])
        out[visible] = embedded
        return out.sum(dim=1)


@dataclass(frozen=True)
class Memory:
    """The keys and values of the decoder: BEV cells row by row, then camera cells by view, row and column.

    A model of one sensor has only the cells of that one.

    Attributes:
        tokens: (B, K, C).
        position: (B, K, C) float32.
        grid: the segments of the key axis.
        rays: viewing rays of the cameras; None without cameras.
        lidar2img: (B, V, 4, 4), LiDAR frame in m -> (u*d, v*d, d, 1), in pixels.
        pad_hw: height and width in pixels of the padded images.
    """

    tokens: Tensor
    position: Tensor
    grid: TokenGrid
    rays: Rays | None
    lidar2img: Tensor
    pad_hw: tuple[int, int]

    @cached_property
    def keys(self) -> Tensor:
        """Tokens plus their position, (B, K, C), in the dtype of the attention inputs.

        The sum is cast once. Otherwise every site would cast it under autocast, and keep a copy for the
        backward pass.
        """
        keys, device = self.tokens + self.position, self.tokens.device.type
        return keys.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else keys


def project(points: Tensor, lidar2img: Tensor, pad_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Project points into every camera.

    The divisor, which is the depth, is detached as in CMT: no gradient passes through the division.

    Args:
        points: (B, Q, 3) in m, LiDAR frame.
        lidar2img: (B, V, 4, 4).
        pad_hw: height and width in pixels of the padded images.

    Returns:
        (B, V, Q, 3): u and v in pixels, and the depth divided by its detached value. (B, V, Q) bool: whether
        the point is in front of the camera and inside its image.
    """
    with torch.autocast(points.device.type, enabled=False):
        matrix = lidar2img.to(points)
        projected = points[:, None] @ matrix[..., :3, :3].mT + matrix[..., None, :3, 3]
    depth = projected[..., 2:].detach()
    ahead = depth > 0
    pixels = projected / torch.where(ahead, depth + DEPTH_GUARD, depth - DEPTH_GUARD)
    u, v = pixels[..., 0], pixels[..., 1]
    visible = ahead[..., 0] & (u >= 0) & (u < pad_hw[1]) & (v >= 0) & (v < pad_hw[0])
    return pixels, visible
