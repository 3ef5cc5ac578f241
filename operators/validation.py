"""Checks of the inputs of ``attention``: shapes, dtypes and devices always, values on request."""

import math
from typing import Any

import torch
from torch import Tensor

from operators.forms import FLOATS, Bias
from operators.grid import TokenGrid


def check_call(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None) -> None:
    """Check that shapes, dtypes and devices fit together.

    No values are read, so the host does not wait for the device.

    Raises:
        TypeError: an input is no float tensor, the dtypes differ, or the bias is no ``Bias``.
        ValueError: a shape or device is not as expected.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 4 or 0 in tensor.shape:
            expected = "(B, H, Q, D)" if name == "q" else "(B, H, K, D)"
            raise ValueError(f"{name}: expected {expected} with no empty axis, got {tuple(tensor.shape)}")
        if tensor.dtype != q.dtype or tensor.dtype not in FLOATS:
            raise TypeError(
                f"{name}: expected one float dtype of 16 to 64 bits for q, k and v, got {tensor.dtype} and "
                f"{q.dtype} for q"
            )
        if tensor.device != q.device:
            raise ValueError(f"{name}: expected device {q.device} as for q, got {tensor.device}")
    batch, heads, _, size = q.shape
    if k.shape != v.shape or k.shape[0] != batch or k.shape[1] not in (1, heads) or k.shape[3] != size:
        raise ValueError(
            f"expected k and v of ({batch}, {heads} or 1, K, {size}) for q of {tuple(q.shape)}, "
            f"got {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if bias is not None and not isinstance(bias, Bias):
        raise TypeError(_no_bias(bias))
    if bias is not None and bias.kind != "none":
        _check_bias(bias, q, keys=k.shape[2])


def _no_bias(given: Any) -> str:
    """Say what to give instead of what PyTorch's own attention takes as a mask, or of a name."""
    advice = "make one, such as WindowBias(grid, windows, weight)"
    if isinstance(given, Tensor):
        advice = "wrap it: DenseBias(values)"
        if given.dtype == torch.bool:
            advice += ", where values are 0 for True and -inf for False"
    return f"bias: expected a Bias or None, got {type(given).__name__}; {advice}"


def check_numbers(scale: float | None, rank: int | None) -> None:
    """Check scale and rank, which are plain numbers or None.

    Raises:
        TypeError: one is of another type. A tensor would lose its gradient.
        ValueError: the scale is not positive and finite.
    """
    if isinstance(scale, Tensor):
        raise TypeError(
            "scale: expected a number, got a tensor, whose gradient would be lost; multiply q by it instead"
        )
    if isinstance(rank, bool) or not isinstance(rank, int | None):
        raise TypeError(f"rank: expected a whole number or None, got {rank!r}")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale: expected a positive finite number, got {scale}")


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
    _check_range(bias, q.dtype)
    if bias.key_grid is not None and "windows" in bias.tensors:
        _check_windows(bias.tensors["windows"], bias.key_grid)


def _check_range(bias: Bias, dtype: torch.dtype) -> None:
    """Check that the dtype of the scores holds every value that the bias adds, -inf apart."""
    if bias.trainable is None:
        return
    added = bias.trainable.detach()
    if limit := getattr(bias, "limit", None):
        added = added.clamp(-limit, limit)
    largest = added.masked_fill(added.isinf(), 0.0).abs().max().item()
    if largest > torch.finfo(dtype).max:
        raise ValueError(
            f"{bias.kind} bias: expected values that {dtype} holds (up to {torch.finfo(dtype).max:.6g}), got "
            f"{largest:.6g}; clamp the weights, or compute in another dtype"
        )


def check_factors(fields: dict[str, Any], scale: float, dtype: torch.dtype) -> None:
    """Check that the dtype holds the factors of a bias, if that is its form: u is divided by the scale.

    Args:
        fields: the bias as ``operators.api.render`` returns it.
        scale: factor on the content scores.
        dtype: of q, k and v.

    Raises:
        ValueError: names the factor and its largest value.
    """
    for name, divisor in (("u", scale), ("w", 1.0)):
        if name not in fields:
            return
        largest = fields[name].detach().abs().max().item() / divisor
        if not largest <= torch.finfo(dtype).max:
            raise ValueError(
                f"the factor {name} of the bias reaches {largest:.6g}, and {dtype} holds up to "
                f"{torch.finfo(dtype).max:.6g}; clamp the weights, or compute in another dtype"
            )


def _check_windows(windows: Tensor, grid: TokenGrid) -> None:
    """Check that every window that is not empty lies within its segment."""
    for i, segment in enumerate(grid.segments):
        first_row, last_row, first_col, last_col = windows[:, :, i].unbind(-1)
        empty = (last_row < first_row) | (last_col < first_col)
        on_map = (first_row >= 0) & (last_row < segment.rows) & (first_col >= 0) & (last_col < segment.cols)
        if not (empty | on_map).all():
            size = f"{segment.rows} x {segment.cols} cells"
            raise ValueError(f"bias.windows: expected windows within segment {i} ({size})")
