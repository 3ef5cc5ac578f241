"""The biases as score modifiers of FlexAttention: functions of (score, b, h, q, k).

The functions are closures over tensors. FlexAttention reads these by index inside its kernel and, on a GPU,
gives gradients to the weights. Meanings and shapes are those of ``operators.bias``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from operators.grid import TokenGrid

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def dense(values: Tensor) -> ScoreMod:
    """Return a function that adds the value of (B or 1, H or 1, Q, K) at the score's place."""
    per_sample, per_head = values.shape[0] > 1, values.shape[1] > 1

    def dense_bias(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + values[b if per_sample else 0, h if per_head else 0, q, k]

    return dense_bias


def per_segment(grid: TokenGrid, weight: Tensor) -> ScoreMod:
    """Return a function that adds the weight (B, H or 1, Q, S) of the key's segment."""
    per_head = weight.shape[1] > 1
    segment_of, _, _ = grid.key_tables(weight.device)

    def global_bias(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + weight[b, h if per_head else 0, q, segment_of[k]]

    return global_bias


def window(grid: TokenGrid, windows: Tensor, weight: Tensor) -> ScoreMod:
    """Return a function that adds the weight (B, H or 1, Q, S) if the key's cell lies in the window."""
    per_head = weight.shape[1] > 1
    segment_of, row_of, col_of = grid.key_tables(weight.device)

    def window_bias(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        s = segment_of[k]
        inside = _inside(windows, b, q, s, row_of[k], col_of[k])
        return score + torch.where(inside, weight[b, h if per_head else 0, q, s], 0.0)

    return window_bias


def falling(
    grid: TokenGrid,
    windows: Tensor,
    weight: Tensor,
    field: tuple[Tensor, Callable[[Tensor], Tensor], float],
) -> ScoreMod:
    """Return a function that adds the clamped fall-off if the key's cell lies in the window.

    Args:
        grid: the key axis.
        windows: (B, Q, S, 4) int32.
        weight: (B, H or 1, Q, S), in logits.
        field: centers (B, Q, S, 2) in cells; the fall-off as a function of the squared distance; limit in
            logits.
    """
    centers, fall_off, limit = field
    per_head = weight.shape[1] > 1
    segment_of, row_of, col_of = grid.key_tables(weight.device)

    def falling_bias(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        s, row, col = segment_of[k], row_of[k], col_of[k]
        down, right = row - centers[b, q, s, 0], col - centers[b, q, s, 1]
        bias = weight[b, h if per_head else 0, q, s] * fall_off(down * down + right * right)
        return score + torch.where(_inside(windows, b, q, s, row, col), bias.clamp(-limit, limit), 0.0)

    return falling_bias


def local(grid: TokenGrid, windows: Tensor) -> ScoreMod:
    """Return a function that keeps the score if the key's cell lies in the window, else -inf."""
    segment_of, row_of, col_of = grid.key_tables(windows.device)

    def local_mask(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        inside = _inside(windows, b, q, segment_of[k], row_of[k], col_of[k])
        return torch.where(inside, score, -torch.inf)

    return local_mask


def _inside(windows: Tensor, b: Tensor, q: Tensor, s: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Whether a cell lies in the window of query ``q`` and segment ``s``."""
    row_inside = (row >= windows[b, q, s, 0]) & (row <= windows[b, q, s, 1])
    return row_inside & (col >= windows[b, q, s, 2]) & (col <= windows[b, q, s, 3])
