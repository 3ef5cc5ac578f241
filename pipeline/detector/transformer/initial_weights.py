"""Initial weights with which the decoder reads the keys near its queries, from the first step on.

A model that starts from published weights replaces all of them. With the usual ones a query reads the mean of
22,384 keys, every query the same: the position embeddings of CMT vary by 0.12 over the range, and unrelated
matrices project queries and keys. What is read is noise to the heads, so training removes it first, and for
thousands of samples only learns what boxes are like in general (docs/log.md, 2026-11-30).
"""

import math

import torch
from torch import Tensor, nn

from pipeline.detector.transformer.position_encoding import NEAREST_DEPTH, PositionMlp, sine_embedding_2d

RIDGE = 1e-4
"""Share of the largest variance that is added to all before hidden channels are decorrelated."""

GRID = 64
"""Places along x and along y over which BEV embeddings are spread; as many rays as places."""

HALF_FIELD = math.radians(20)
"""Half of the vertical field of view of the rays; nuScenes' cameras see 39 degrees."""

POSITION_STD = 3.0
"""Of a position embedding in each channel: contents, of about 1, should not decide where a query reads."""

PROJECTED_STD = 1.5
"""Of what a position adds to projected queries and keys in each channel."""


@torch.no_grad()
def whiten(mlp: PositionMlp, inputs: Tensor) -> None:
    """Set the second layer so that the outputs over ``inputs`` have mean 0 and, on average, ``POSITION_STD``.

    Hidden channels are decorrelated, so that the product of two embeddings is near 0 unless their places are
    close. Channels that hardly vary get less than their share (``RIDGE``).

    Args:
        mlp: its first layer keeps its directions.
        inputs: (N, inputs of the first layer).
    """
    last = mlp[2]
    assert isinstance(last, nn.Linear)
    hidden = mlp.first(inputs.to(mlp.first.weight)).relu().double()
    mean = hidden.mean(dim=0)
    variance, axes = torch.linalg.eigh((hidden - mean).T @ (hidden - mean) / len(hidden))
    kept = min(last.out_features, len(variance))
    variance, axes = variance[-kept:].clamp(min=0), axes[:, -kept:]
    scaled = axes / (variance + RIDGE * variance[-1]).sqrt()
    mixed = torch.linalg.qr(torch.randn(last.out_features, kept, dtype=torch.double))[0] @ scaled.T
    outputs = (hidden - mean) @ mixed.T
    mixed *= POSITION_STD / outputs.square().mean().sqrt()
    # A ReLU layer may be scaled and the next one divided: both end with weights of the same size.
    scale = (mixed.std() / mlp.first.weight.std()).sqrt()
    mlp.first.weight.mul_(scale)
    mlp.first.bias.mul_(scale)
    last.weight.copy_(mixed / scale)
    last.bias.copy_(-mixed @ mean)


def bev_inputs(dims: int) -> Tensor:
    """Return what the BEV embedding's MLP gets at ``GRID`` x ``GRID`` places, (N, 2 * dims)."""
    centres = (torch.arange(GRID) + 0.5) / GRID
    return sine_embedding_2d(torch.cartesian_prod(centres, centres), dims)


def ray_inputs(depths: int, point_range: Tensor) -> Tensor:
    """Return what the rays' MLP gets of random rays from the middle of the range, (N, 3 * depths).

    Args:
        depths: samples of a ray.
        point_range: (6,) x, y, z minima and maxima in m.
    """
    low, high = point_range[:3], point_range[3:]
    azimuth = 2 * math.pi * torch.rand(GRID**2)
    slope = (HALF_FIELD * (2 * torch.rand(GRID**2) - 1)).tan()
    direction = torch.stack([azimuth.cos(), azimuth.sin(), slope], dim=-1)
    depth = NEAREST_DEPTH + torch.arange(depths) / depths * (high[0] - NEAREST_DEPTH)
    points = direction[:, None] * depth[:, None] - low
    return (points / (high - low)).flatten(1)


@torch.no_grad()
def align(in_proj_weight: Tensor) -> None:
    """Project keys as queries are, so that the score of a pair is highest where their positions are equal.

    Args:
        in_proj_weight: (3 * C, C), of queries, keys and values.
    """
    of_queries, of_keys, _ = in_proj_weight.chunk(3)
    nn.init.normal_(of_queries, std=PROJECTED_STD / POSITION_STD / math.sqrt(in_proj_weight.shape[1]))
    of_keys.copy_(of_queries)


@torch.no_grad()
def pass_values(in_proj_weight: Tensor, out_proj_weight: Tensor) -> None:
    """Let an attention return the mean of the values that it attends to, as they are.

    Args:
        in_proj_weight: see ``align``.
        out_proj_weight: (C, C), of what the heads found.
    """
    of_values = in_proj_weight.chunk(3)[2]
    nn.init.orthogonal_(of_values)
    out_proj_weight.copy_(of_values.T)
