"""Every bias as FlexAttention's score modifier: a function of (score, b, h, q, k).

The closures capture tensors; FlexAttention reads them by index inside its kernel and, on a GPU, gives
gradients to the weights. Meanings and shapes: ``operators.bias``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from operators.grid import TokenGrid

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def dense(values: Tensor) -> ScoreMod:
    """Look the value up in (B or 1, H or 1, Q, K)."""
    per_sample, per_head = values.shape[0] > 1, values.shape[1] > 1

    def dense_bias(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + values[b if per_sample else 0, h if per_head else 0, q, k]

    return dense_bias


def per_segment(grid: TokenGrid, weight: Tensor) -> ScoreMod:
    """Look the weight (B, H or 1, Q, S) of the key's segment up."""
    per_head = weight.shape[1] > 1
    segment_of, _, _ = grid.key_tables(weight.device)

    def global_bias(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + weight[b, h if per_head else 0, q, segment_of[k]]

    return global_bias


def window(grid: TokenGrid, rects: Tensor, weight: Tensor) -> ScoreMod:
    """Add the weight (B, H or 1, Q, S) if the key's cell lies inside the rect."""
    per_head = weight.shape[1] > 1
    segment_of, row_of, col_of = grid.key_tables(weight.device)

    def window_bias(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        s = segment_of[k]
        held = _held(rects, b, q, s, row_of[k], col_of[k])
        return score + torch.where(held, weight[b, h if per_head else 0, q, s], 0.0)

    return window_bias


def gaussian(grid: TokenGrid, rects: Tensor, weight: Tensor, field: tuple[Tensor, float, float]) -> ScoreMod:
    """Add the clamped fall-off (centers, sigma, limit) if the key's cell lies inside the rect."""
    centers, sigma, limit = field
    per_head, slope = weight.shape[1] > 1, -0.5 / sigma**2
    segment_of, row_of, col_of = grid.key_tables(weight.device)

    def gaussian_bias(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        s, row, col = segment_of[k], row_of[k], col_of[k]
        down, right = row - centers[b, q, s, 0], col - centers[b, q, s, 1]
        bias = weight[b, h if per_head else 0, q, s] * torch.exp(slope * (down * down + right * right))
        return score + torch.where(_held(rects, b, q, s, row, col), bias.clamp(-limit, limit), 0.0)

    return gaussian_bias


def local(grid: TokenGrid, rects: Tensor) -> ScoreMod:
    """Keep the score if the key's cell lies inside the rect, else minus infinity."""
    segment_of, row_of, col_of = grid.key_tables(rects.device)

    def local_mask(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        held = _held(rects, b, q, segment_of[k], row_of[k], col_of[k])
        return torch.where(held, score, -torch.inf)

    return local_mask


def _held(rects: Tensor, b: Tensor, q: Tensor, s: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Say whether a cell lies in the rect of query ``q`` and segment ``s``."""
    rows_hold = (row >= rects[b, q, s, 0]) & (row <= rects[b, q, s, 1])
    return rows_hold & (col >= rects[b, q, s, 2]) & (col <= rects[b, q, s, 3])
