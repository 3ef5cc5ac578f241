"""Checks of the inputs of ``attention``: shapes, dtypes and devices always, values on request."""

import math

import torch
from torch import Tensor

from operators.forms import Bias
from operators.grid import TokenGrid


def check_call(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, scale: float) -> None:
    """Check that shapes, dtypes and devices fit together.

    No values are read, so the host does not wait for the device.

    Raises:
        TypeError: an input is no float tensor, or the dtypes differ.
        ValueError: a shape or device is not as expected, or the scale is not positive and finite.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 4 or 0 in tensor.shape:
            expected = "(B, H, Q, D)" if name == "q" else "(B, H, K, D)"
            raise ValueError(f"{name}: expected {expected} with no empty axis, got {tuple(tensor.shape)}")
        if tensor.dtype != q.dtype or not tensor.is_floating_point():
            raise TypeError(
                f"{name}: expected the float dtype of q for all three, got {tensor.dtype} and {q.dtype}"
            )
        if tensor.device != q.device:
            raise ValueError(f"{name}: expected device {q.device} as for q, got {tensor.device}")
    batch, heads, _, size = q.shape
    if k.shape != v.shape or k.shape[:2] != q.shape[:2] or k.shape[3] != size:
        raise ValueError(
            f"expected k and v of ({batch}, {heads}, K, {size}) for q of {tuple(q.shape)}, "
            f"got {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"expected a positive finite scale, got {scale}")
    if bias is not None:
        _check_bias(bias, q, keys=k.shape[2])


def _check_bias(bias: Bias, q: Tensor, keys: int) -> None:
    """Check that the bias has the size and the device of the call."""
    batch, heads, queries, _ = q.shape
    expected = (batch, heads, queries, keys)
    for name, tensor in bias.tensors.items():
        if tensor.device != q.device:
            raise ValueError(f"bias.{name}: expected device {q.device} as for q, got {tensor.device}")
    # All samples may share a dense bias. All heads may share any bias.
    also_allowed = ((1,) if bias.kind == "dense" else (), (1,), (), ())
    for got, size, also in zip(bias.shape, expected, also_allowed, strict=True):
        if got != size and got not in also:
            raise ValueError(
                f"{bias.kind} bias: expected (B, H or 1, Q, K) = {expected} to fit q and k, got {bias.shape}"
            )


def check_values(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None) -> None:
    """Check that values are finite and that windows lie within their segments.

    The host waits for the device.

    Raises:
        ValueError: names the tensor with NaN, infinity, or a window beyond its segment.
    """
    named = {"q": q, "k": k, "v": v}
    for name, tensor in named.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    if bias is None:
        return
    for name, tensor in bias.tensors.items():
        allowed = torch.isfinite(tensor) | (tensor == -torch.inf if bias.kind == "dense" else False)
        if not allowed.all():
            also = " or -inf" if bias.kind == "dense" else ""
            raise ValueError(f"bias.{name}: expected finite values{also}, got NaN or infinity")
    if bias.key_grid is not None and "windows" in bias.tensors:
        _check_windows(bias.tensors["windows"], bias.key_grid)


def _check_windows(windows: Tensor, grid: TokenGrid) -> None:
    """Check that every window that is not empty lies within its segment."""
    for i, segment in enumerate(grid.segments):
        first_row, last_row, first_col, last_col = windows[:, :, i].unbind(-1)
        empty = (last_row < first_row) | (last_col < first_col)
        on_map = (first_row >= 0) & (last_row < segment.rows) & (first_col >= 0) & (last_col < segment.cols)
        if not (empty | on_map).all():
            size = f"{segment.rows} x {segment.cols} cells"
            raise ValueError(f"bias.windows: expected windows within segment {i} ({size})")
