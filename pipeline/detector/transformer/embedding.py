"""Keys and queries of the head with their position embeddings: the part before the decoder."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from operators.grid import CAMERA, LIDAR, TokenGrid
from pipeline.detector.transformer.config_keys import whole_number
from pipeline.detector.transformer.initial_weights import bev_inputs, ray_inputs, whiten
from pipeline.detector.transformer.position_encoding import (
    Cameras,
    Memory,
    PositionMlp,
    Rays,
    embed_bev_cells,
    inverse_sigmoid,
    project,
    sine_embedding_2d,
)

Made = TypeVar("Made")

RAY_WIDTH = 4  # hidden channels of the ray MLP per channel of the model (1024 for 256), as in CMT


class Embedding(nn.Module):
    """The part of CMT's head that computes position embeddings; parameters are named as in its checkpoints.

    Args:
        in_channels: channels of the BEV features.
        dims: C.
        num_query: number of learned queries.
        depth_num: number of depth samples of a viewing ray.

    Raises:
        ValueError: one of the numbers is not a whole one of at least 1.

    Attributes:
        point_range: (6,) x, y, z minima and maxima in m; a subclass registers it.
        SENSORS: modalities of the memory. The features of another one are an empty tensor.
    """

    point_range: Tensor
    SENSORS: tuple[int, ...] = (LIDAR, CAMERA)
    _kept: dict[Hashable, tuple[Sequence[Tensor], Any]] | None = None

    def __init__(self, in_channels: int, dims: int, num_query: int, depth_num: int) -> None:
        super().__init__()
        self.num_query = whole_number("pts_bbox_head.num_query", num_query)
        self.depth_num = whole_number("pts_bbox_head.depth_num", depth_num)
        self.shared_conv = _shared_conv(in_channels, dims) if LIDAR in self.SENSORS else None
        self.reference_points = nn.Embedding(self.num_query, 3)
        nn.init.uniform_(self.reference_points.weight)
        self.bev_embedding = PositionMlp(2 * dims, dims, dims)
        rays = PositionMlp(3 * self.depth_num, RAY_WIDTH * dims, dims) if CAMERA in self.SENSORS else None
        self.rv_embedding = rays

    def whiten_positions(self) -> None:
        """Draw the initial weights of both position embeddings, once ``point_range`` is there."""
        if self.point_range.is_meta:
            return
        whiten(self.bev_embedding, bev_inputs(self.bev_embedding.first.in_features // 2))
        if self.rv_embedding is not None:
            whiten(self.rv_embedding, ray_inputs(self.depth_num, self.point_range))

    def make_memory(
        self, bev_feats: Tensor, img_feats: Tensor, lidar2img: Tensor | Cameras, pad_hw: tuple[int, int]
    ) -> Memory:
        """Return BEV and camera features as keys, with their position embeddings.

        Args:
            bev_feats: (B, in_channels, H, W); rows are along y.
            img_feats: (B * V, C, h, w), sample by sample.
            lidar2img: (B, V, 4, 4) float64, see ``Cameras``; or the ``Cameras`` made from it.
            pad_hw: height and width in pixels of the padded images.

        Raises:
            ValueError: the number of image maps is not B * V.
        """
        given = lidar2img
        cameras = given if isinstance(given, Cameras) else Cameras.of(given, bev_feats.device)
        tokens, maps = [], []
        if self.shared_conv is not None:
            bev = self.shared_conv(bev_feats)
            tokens.append(bev.flatten(2).mT)
            maps.append((*bev.shape[-2:], LIDAR))
        if self.rv_embedding is not None:
            tokens.append(_image_tokens(img_feats, cameras, like=tokens[0] if tokens else img_feats))
            maps += [(*img_feats.shape[-2:], CAMERA)] * cameras.lidar2img.shape[1]
        grid = TokenGrid.of(*maps)
        position, rays = self._once(
            ("keys", grid, pad_hw), (cameras.inverse,), lambda: self._embed_keys(maps, cameras, pad_hw)
        )
        return Memory(torch.cat(tokens, dim=1), position, grid, rays, cameras.lidar2img, pad_hw)

    def _embed_keys(
        self, maps: Sequence[tuple[int, int, int]], cameras: Cameras, pad_hw: tuple[int, int]
    ) -> tuple[Tensor, Rays | None]:
        """Return the position embedding (B, K, C) of all keys, and the rays of the cameras."""
        position, rays = [], None
        with torch.autocast(cameras.inverse.device.type, enabled=False):
            if self.shared_conv is not None:
                of_bev = embed_bev_cells(self.bev_embedding, *maps[0][:2])
                position.append(of_bev.expand(len(cameras.inverse), -1, -1))
            if self.rv_embedding is not None:
                rays = Rays(cameras.inverse, self.point_range, self.depth_num)
                position.append(rays.embed_cells(self.rv_embedding, *maps[-1][:2], pad_hw))
        return torch.cat(position, dim=1), rays

    @contextmanager
    def same_weights(self) -> Iterator[None]:
        """Within it, the position embeddings of equal cameras are computed once, on a CPU.

        Weights must not change within it.
        """
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def _once(self, key: Hashable, given: Sequence[Tensor], compute: Callable[[], Made]) -> Made:
        """Return what ``compute`` returns, or within ``same_weights`` what it returned for equal input.

        On a GPU the host would wait to compare.

        Args:
            key: names what is computed; one result of each is kept.
            given: all that it depends on, beside weights and ``key``.
            compute: computes it.
        """
        if self._kept is None or given[0].is_cuda:
            return compute()
        known = self._kept.get(key)
        if known is None or not all(map(torch.equal, known[0], given)):
            known = self._kept[key] = (given, compute())
        return cast(Made, known[1])

    def embed_queries(self, points: Tensor, memory: Memory) -> Tensor:
        """Return the position embedding (B, Q, C) of queries at normalised reference points (B, Q, 3).

        As in CMT it has a BEV part without a LiDAR too, and a camera part only with cameras.
        """
        given = (points, memory.lidar2img)
        return self._once(("queries", memory.pad_hw), given, lambda: self._embed_queries(points, memory))

    def _embed_queries(self, points: Tensor, memory: Memory) -> Tensor:
        of_bev, of_img = self.query_embeddings(points, memory)
        return of_bev if of_img is None else of_bev + of_img

    def query_embeddings(self, points: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Return the BEV part and the camera part of the query embedding, (B, Q, C) each."""
        with torch.autocast(points.device.type, enabled=False):
            points = inverse_sigmoid(points).sigmoid()
            low, high = self.point_range[:3], self.point_range[3:]
            dims = self.bev_embedding.first.in_features // 2
            of_bev = self.bev_embedding(sine_embedding_2d(points[..., :2], dims))
            if self.rv_embedding is None or memory.rays is None:
                return of_bev, None
            pixels, visible = project(points * (high - low) + low, memory.lidar2img, memory.pad_hw)
            return of_bev, memory.rays.embed_points(self.rv_embedding, pixels, visible)


def _shared_conv(in_channels: int, dims: int) -> nn.Sequential:
    """Return the convolution that brings the BEV features to the model's width."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, dims, 3, padding=1, bias=False),
            bn=nn.BatchNorm2d(dims),
            activate=nn.ReLU(),
        )
    )


def _image_tokens(img_feats: Tensor, cameras: Cameras, like: Tensor) -> Tensor:
    """Return camera features (B, V * h * w, C) by view, row and column, in the dtype of ``like``."""
    batch, views = cameras.lidar2img.shape[:2]
    if len(img_feats) != batch * views:
        raise ValueError(
            f"img_feats: expected {batch} samples of {views} views = {batch * views} maps, "
            f"got {len(img_feats)}"
        )
    cells = views * img_feats.shape[-2:].numel()
    return img_feats.flatten(2).mT.reshape(batch, cells, -1).to(like.dtype)
