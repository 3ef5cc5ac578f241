"""Position encodings of BEV cells, camera pixels and queries.

Formulas of CMT (arXiv 2301.01283; repository junjie18/CMT), computed in fp32 whatever autocast
says: a pixel coordinate of 1600 has no half-pixel left in half precision.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from operators import TokenGrid
from pipeline.detector.acceleration.async_transfer import upload

CLAMP = 1e-5  # distance from 0 and 1 at which inverse_sigmoid stops, as in mmdet
DEPTH_GUARD = 1e-6  # metres added to a projected depth, so that nothing divides by zero (CMT)
NEAREST_DEPTH = 1.0  # metres: the first depth sample of CMT


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Logit of x, with x cut to [0, 1] and both odds to at least ``CLAMP``."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=CLAMP) / (1 - x).clamp(min=CLAMP))


def sine_embedding(coordinate: Tensor, dims: int) -> Tensor:
    """Embed one normalised coordinate: sines in even channels, cosines in odd ones.

    The wavelengths are ``1 + 2 * (i // 2) / dims``, from 1 to almost 2. CMT accepts a temperature and
    never uses it, so there is no exponential ladder; published weights need it that way.

    Args:
        coordinate: (...) in [0, 1].
        dims: channels of the result, even.

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
    """Centres of ``cells`` equal cells on [0, 1]: (cells,)."""
    return (torch.arange(cells, device=device, dtype=torch.float32) + 0.5) / cells


class PositionMlp(nn.Sequential):
    """Two linear layers over coordinates; keys ``0`` and ``2`` as in CMT's checkpoints."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    @property
    def first(self) -> nn.Linear:
        """The layer that sees the coordinates."""
        return cast(nn.Linear, self[0])

    def rest(self, hidden: Tensor) -> Tensor:
        """Everything after the first layer."""
        return cast(Tensor, self[2](self[1](hidden)))


def embed_bev_cells(mlp: PositionMlp, rows: int, cols: int) -> Tensor:
    """Position embedding of every BEV cell, row by row.

    The column is divided by the number of columns and the row by the number of rows. (CMT swaps the
    two, which square grids hide.) The first linear layer is computed per row and per column and
    then added, because its input is the one embedding beside the other.

    Args:
        mlp: with 2 * D inputs and D outputs.
        rows: of the BEV grid, along y.
        cols: of the BEV grid, along x.

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
    """How the cameras of a batch see, on the device of the model.

    Attributes:
        lidar2img: (B, V, 4, 4) float64, LiDAR frame in m -> (u*d, v*d, d, 1), u and v in pixels.
        inverse: (B, V, 3, 4) float64, the first rows of its inverse.
    """

    lidar2img: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, lidar2img: Tensor, device: torch.device) -> "Cameras":
        """Invert the projections on the host, if they are there, and copy both to the device."""
        # In double precision: a principal point of 800 pixels costs single precision 3 digits.
        inverse = torch.linalg.inv(lidar2img.double())[..., :3, :]
        return cls(upload(lidar2img, device), upload(inverse, device))


class Rays:
    """Viewing rays of all cameras, sampled in depth, in coordinates normalised by the range.

    A pixel (u, v) at depth d is the point ``inv(lidar2img) @ (u*d, v*d, d, 1)``. All samples of a ray
    are therefore an affine function of (u, v, 1), and so is what a linear layer makes of them:
    ``embed`` runs that layer on the few coefficients of each camera instead of on every token.

    Attributes:
        basis: (B, V, 4, 3 * depths) float32; ``(u, v, w, 1) @ basis`` are the samples of a ray as
            x, y, z per depth, with w = 1.
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
        """First layer of ``mlp`` on the rays through ``pixels`` (B or 1, 1 or V, N, 3): (B, V, N, hidden)."""
        first = mlp.first
        coefficients = self.basis @ first.weight.T  # (B, V, 4, hidden)
        return pixels @ coefficients[..., :3, :] + (coefficients[..., 3:, :] + first.bias)

    def embed_cells(self, mlp: PositionMlp, rows: int, cols: int, pad_hw: tuple[int, int]) -> Tensor:
        """Position embedding of every camera cell.

        A cell stands for its top-left pixel, without half a pixel added, as in CMT.

        Args:
            mlp: with 3 * depths inputs and D outputs.
            rows: of the feature maps.
            cols: of the feature maps.
            pad_hw: height and width in pixels of the padded images.

        Returns:
            (B, V * rows * cols, D), ordered view, row, column.
        """
        device = self.basis.device
        v = torch.arange(rows, device=device, dtype=torch.float32) * pad_hw[0] / rows
        u = torch.arange(cols, device=device, dtype=torch.float32) * pad_hw[1] / cols
        v, u = torch.meshgrid(v, u, indexing="ij")
        pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1).reshape(1, 1, rows * cols, 3)
        return mlp.rest(self.hidden(mlp, pixels)).flatten(1, 2)

    def embed_points(self, mlp: PositionMlp, pixels: Tensor, visible: Tensor) -> Tensor:
        """Camera part of the query embedding: the sum over the views that see the query.

        A query that no camera sees gets zero. On a CPU only visible pairs pass through the second layer,
        about one view in six; a GPU would have to be waited for to learn which, and computes them all.

        Args:
            mlp: as in ``embed_cells``.
            pixels: (B, V, Q, 3) u, v and the depth over its detached self.
            visible: (B, V, Q) bool.

        Returns:
            (B, Q, D).
        """
        hidden = self.hidden(mlp, pixels)
        if hidden.is_cuda:
            return mlp.rest(hidden).masked_fill(~visible[..., None], 0).sum(dim=1)
        seen = mlp.rest(hidden[visible])
        out = seen.new_zeros(*visible.shape, seen.shape[-1])
        out[visible] = seen
        return out.sum(dim=1)


@dataclass(frozen=True)
class Memory:
    """What queries look at; K keys = BEV cells row by row, then camera cells by view, row and column.

    Attributes:
        tokens: (B, K, C).
        position: (B, K, C) float32.
        grid: which key is where.
        rays: viewing rays of the cameras.
        lidar2img: (B, V, 4, 4), LiDAR frame in m -> (u*d, v*d, d, 1), in pixels.
        pad_hw: height and width in pixels of the padded images.
    """

    tokens: Tensor
    position: Tensor
    grid: TokenGrid
    rays: Rays
    lidar2img: Tensor
    pad_hw: tuple[int, int]

    @cached_property
    def keys(self) -> Tensor:
        """Tokens with their position, (B, K, C), in the dtype that attention uses.

        Made once: under autocast every site would cast the sum for itself, and keep its copy for the
        backward pass.
        """
        keys, device = self.tokens + self.position, self.tokens.device.type
        return keys.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else keys


def project(points: Tensor, lidar2img: Tensor, pad_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Project points into every camera.

    The depth that is divided by is detached, as in CMT: gradients move a point across its ray and
    not through the division.

    Args:
        points: (B, Q, 3) in m, LiDAR frame.
        lidar2img: (B, V, 4, 4).
        pad_hw: height and width in pixels of the padded images.

    Returns:
        (B, V, Q, 3) u, v in pixels and the depth over its detached self, and (B, V, Q) bool: in front
        of the camera and inside its image.
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
