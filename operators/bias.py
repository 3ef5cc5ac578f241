"""The biases: what is added to the scores, and the forms in which it can be handed over.

A bias is a frozen dataclass of tensors. All are differentiable in their weights. Windows, centres and sigma
get no gradient. What is added to the score of query q and key k, in row r and column c of segment s:

    none      + 0
    global    + weight[q, modality(s)]
    window    + weight[q, s]                                                 inside windows[q, s], else + 0
    gaussian  + clamp(weight[q, s] * exp(-d^2 / (2 sigma^2)), -limit, limit) inside windows[q, s], else + 0
              with d^2 = (r - centers[q, s, 0])^2 + (c - centers[q, s, 1])^2, in cells
    local     + 0                                                            inside windows[q, s], else -inf
    dense     + values[q, k]

Shapes: B batch, H heads, Q queries, K keys, S segments, R rank. The formulas are those of AQR, which builds
on MoME and CMT; ``docs/operators.md`` has them too.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from operators import score_mods
from operators.factors import Factors
from operators.forms import Bias, GaussianField, RectsForm
from operators.grid import TokenGrid
from operators.score_mods import ScoreMod
from operators.spec import GLOBAL_RANK, Unsupported


@dataclass(frozen=True, eq=False)
class NoBias(Bias):
    """No bias; the same as ``bias=None``."""

    kind: ClassVar[str] = "none"


@dataclass(frozen=True, eq=False)
class DenseBias(Bias):
    """One number per score.

    Attributes:
        values: (B or 1, H or 1, Q, K) float, in logits; may hold -inf (a mask). A query whose row is all
            -inf has output 0 and gradient 0.

    Raises:
        ValueError: another shape, or no float dtype.
    """

    values: Tensor
    kind: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        """Check the shape."""
        if self.values.ndim != 4 or not self.values.is_floating_point():
            got = f"{self.values.dtype} {tuple(self.values.shape)}"
            raise ValueError(f"DenseBias expects float values (B or 1, H or 1, Q, K), got {got}")

    @property
    def trainable(self) -> Tensor:
        """The values, which take gradients."""
        return self.values

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the values."""
        b, h, q, k = self.values.shape
        return b, h, q, k

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the values in ``dtype``; None: in their own."""
        return self.values.to(dtype or self.values.dtype)

    def score_mod(self) -> ScoreMod:
        """Return a function that looks up the value of a score."""
        return score_mods.dense(self.values)


class _WeightedBias(Bias):
    """A bias with one weight per query and part of a grid; subclasses are dataclasses."""

    grid: TokenGrid
    weight: Tensor

    @property
    def trainable(self) -> Tensor:
        """The weight with a head axis: (B, H or 1, Q, n)."""
        return self.weight.unsqueeze(1) if self.weight.ndim == 3 else self.weight

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H or 1, Q, K)."""
        b, h, q, _ = self.trainable.shape
        return b, h, q, self.grid.num_keys


@dataclass(frozen=True, eq=False)
class GlobalBias(_WeightedBias):
    """Per query one number for all LiDAR keys and one for all camera keys. Its rank is exactly 2.

    Attributes:
        grid: the key axis.
        weight: (B, Q, 2) or (B, H, Q, 2) float, in logits: LiDAR, camera.

    Raises:
        ValueError: the weight has another shape, or no float dtype.
    """

    grid: TokenGrid
    weight: Tensor
    kind: ClassVar[str] = "global"

    def __post_init__(self) -> None:
        """Check the shape."""
        _check_weight(self, "B", "Q", 2)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return each weight repeated over the keys of its modality, (B, H or 1, Q, K)."""
        weight = self.trainable.to(dtype or self.weight.dtype)
        parts = [
            weight[..., s.modality, None].expand(*weight.shape[:3], s.num_keys) for s in self.grid.segments
        ]
        return torch.cat(parts, dim=-1)

    def factors(self, rank: int | None = None) -> Factors:
        """Return u = weight and w = the one-hot modality of every key: exact factors.

        Raises:
            Unsupported: a rank below 2.
        """
        if rank is not None and rank < GLOBAL_RANK:
            raise Unsupported(f"the global bias has rank {GLOBAL_RANK}, exactly and cheaply; got rank={rank}")
        u = self.trainable
        camera = torch.cat(
            [u.new_full((s.num_keys,), s.modality) for s in self.grid.segments]
        )  # a modality is 0 or 1
        w = torch.stack((1 - camera, camera), dim=-1)
        return Factors(u, w.expand(*u.shape[:2], -1, -1), u.new_zeros(u.shape[:2]))

    def rects_form(self) -> RectsForm:
        """Return one rect per segment, which covers it."""
        b, _, q, _ = self.shape
        rects = self.grid.whole_rects(b, q, self.weight.device)
        return RectsForm(self.grid, rects, self.grid.per_segment(self.trainable), "add")

    def score_mod(self) -> ScoreMod:
        """Return a function that adds the weight of the key's segment."""
        return score_mods.per_segment(self.grid, self.grid.per_segment(self.trainable))


@dataclass(frozen=True, eq=False)
class WindowBias(_WeightedBias):
    """A weight inside one rectangle per query and segment, nothing outside.

    Attributes:
        grid: the key axis.
        windows: (B, Q, S, 4) int32, see ``TokenGrid.windows_around``.
        weight: (B, Q, S) or (B, H, Q, S) float, in logits, added as it is (the caller clamps).
    """

    grid: TokenGrid
    windows: Tensor
    weight: Tensor
    kind: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        """Check the shapes."""
        _check_windows(self.grid, self.windows)
        _check_weight(self, *self.windows.shape[:3])

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight inside the windows and 0 outside, (B, H or 1, Q, K).

        Per segment this is the outer product of (weight * rows inside) and (columns inside).
        """
        weight = self.trainable.to(dtype or self.weight.dtype)
        parts = []
        for which, rows, cols in self.grid.inside(self.windows):
            by_row = weight[..., which, None] * rows.unsqueeze(1)  # (B, H or 1, Q, n, rows)
            by_col = cols.unsqueeze(1).to(weight.dtype)  # (B, 1, Q, n, cols)
            parts.append((by_row.unsqueeze(-1) * by_col.unsqueeze(-2)).flatten(3))
        return torch.cat(parts, dim=-1)

    def rects_form(self) -> RectsForm:
        """Return the windows and weights, without a copy."""
        return RectsForm(self.grid, self.windows, self.trainable, "add")

    def score_mod(self) -> ScoreMod:
        """Return a function that adds the weight if the key's cell lies in the window."""
        return score_mods.window(self.grid, self.windows, self.trainable)


@dataclass(frozen=True, eq=False)
class GaussianBias(_WeightedBias):
    """A weight that falls off from a centre, inside one window per query and segment.

    The gradient of the clamp is that of ``torch.clamp``: 1 up to and including the limit, 0 beyond.

    Attributes:
        grid: the key axis.
        windows: (B, Q, S, 4) int32, see ``TokenGrid.windows_around``.
        weight: (B, Q, S) or (B, H, Q, S) float, in logits at the centre, before the clamp.
        centers: (B, Q, S, 2) float: row, column, in cells (whole numbers are cell middles).
        sigma: standard deviation in cells.
        limit: largest absolute value that is added, in logits.

    Raises:
        ValueError: shapes that do not fit together, or a sigma or limit that is not positive.
    """

    grid: TokenGrid
    windows: Tensor
    weight: Tensor
    centers: Tensor
    sigma: float
    limit: float
    kind: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        """Check shapes and numbers."""
        _check_windows(self.grid, self.windows)
        _check_weight(self, *self.windows.shape[:3])
        expected = (*self.windows.shape[:3], 2)
        if tuple(self.centers.shape) != expected or not self.centers.is_floating_point():
            got = f"{self.centers.dtype} {tuple(self.centers.shape)}"
            raise ValueError(f"GaussianBias expects float centers {expected}, got {got}")
        if not (self.sigma > 0 and self.limit > 0):
            raise ValueError(
                f"GaussianBias expects sigma > 0 and limit > 0, got {self.sigma} and {self.limit}"
            )

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the clamped fall-off inside the windows and 0 outside, (B, H or 1, Q, K).

        It is computed in the dtype of the weights.
        """
        parts = []
        for which, rows, cols in self.grid.inside(self.windows):
            center = self.centers[:, :, which].to(self.weight.dtype)
            down = torch.arange(rows.shape[-1], device=rows.device) - center[..., 0, None]
            right = torch.arange(cols.shape[-1], device=cols.device) - center[..., 1, None]
            squared = (down**2).unsqueeze(-1) + (right**2).unsqueeze(-2)  # (B, Q, n, rows, cols)
            fall = torch.exp(squared * (-0.5 / self.sigma**2)).unsqueeze(1)
            bias = (self.trainable[..., which, None, None] * fall).clamp(-self.limit, self.limit)
            inside = (rows.unsqueeze(-1) & cols.unsqueeze(-2)).unsqueeze(1)
            parts.append(torch.where(inside, bias, 0.0).to(dtype or bias.dtype).flatten(3))
        return torch.cat(parts, dim=-1)

    def rects_form(self) -> RectsForm:
        """Return the windows, weights and fall-off, without a copy."""
        field = GaussianField(self.centers.detach(), self.sigma, self.limit)
        return RectsForm(self.grid, self.windows, self.trainable, "add", field)

    def score_mod(self) -> ScoreMod:
        """Return a function that adds the clamped fall-off if the key's cell lies in the window."""
        field = (self.centers.detach(), self.sigma, self.limit)
        return score_mods.gaussian(self.grid, self.windows, self.trainable, field)


@dataclass(frozen=True, eq=False)
class LocalMask(Bias):
    """Minus infinity outside all windows of a query (LAM, the mask of AQR's own attention).

    A query without any key has output 0 and gradient 0, by definition.

    Attributes:
        grid: the key axis.
        windows: (B, Q, S, 4) int32, see ``TokenGrid.windows_around``.
    """

    grid: TokenGrid
    windows: Tensor
    kind: ClassVar[str] = "local"

    def __post_init__(self) -> None:
        """Check the shape."""
        _check_windows(self.grid, self.windows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, 1, Q, K)."""
        b, q = self.windows.shape[:2]
        return b, 1, q, self.grid.num_keys

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return 0 inside the windows and -inf outside, (B, 1, Q, K); ``dtype`` None: float32."""
        zero = torch.zeros((), dtype=dtype or torch.float32, device=self.windows.device)
        parts = [
            torch.where(rows.unsqueeze(-1) & cols.unsqueeze(-2), zero, -torch.inf).flatten(2)
            for _, rows, cols in self.grid.inside(self.windows)
        ]
        return torch.cat(parts, dim=-1).unsqueeze(1)

    def factors(self, rank: int | None = None) -> Factors:
        """Raise Unsupported: minus infinity is no sum of products."""
        raise Unsupported(
            f"a local mask has no factors (minus infinity is no sum of products), got rank={rank}"
        )

    def rects_form(self) -> RectsForm:
        """Return the windows, without a copy."""
        return RectsForm(self.grid, self.windows, None, "mask")

    def score_mod(self) -> ScoreMod:
        """Return a function that keeps the score if the key's cell lies in a window."""
        return score_mods.local(self.grid, self.windows)


def _check_windows(grid: TokenGrid, windows: Tensor) -> None:
    """Refuse windows of another shape or dtype than (B, Q, S, 4) int32."""
    expected = (grid.num_segments, 4)
    if windows.dtype != torch.int32 or windows.ndim != 4 or tuple(windows.shape[2:]) != expected:
        got = f"{windows.dtype} {tuple(windows.shape)}"
        raise ValueError(f"expected int32 windows (B, Q, {grid.num_segments}, 4), got {got}")


def _check_weight(bias: _WeightedBias, batch: int | str, queries: int | str, last: int) -> None:
    """Refuse weights of another shape than (B, Q, n) or (B, H, Q, n); a size given as a letter may be any."""
    weight, sizes = bias.weight, (batch, queries, last)
    actual = (*weight.shape[:1], *weight.shape[-2:])
    fits = all(isinstance(size, str) or size == got for size, got in zip(sizes, actual, strict=False))
    if weight.ndim not in (3, 4) or not weight.is_floating_point() or not fits:
        expected = f"({batch}, {queries}, {last}) or ({batch}, H, {queries}, {last})"
        got = f"{weight.dtype} {tuple(weight.shape)}"
        raise ValueError(f"{type(bias).__name__} expects float weights {expected}, got {got}")
