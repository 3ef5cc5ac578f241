"""What is added to the scores, and every form in which it can be handed over.

Frozen values made of tensors. All are differentiable in their weights; rects, centres and sigma carry
no gradient. Meaning, for the score of query q against key k in row r, column c of segment s:

    none      + 0
    global    + weight[q, modality(s)]
    window    + weight[q, s]                                                   inside rects[q, s], else + 0
    gaussian  + clamp(weight[q, s] * exp(-d^2 / (2 sigma^2)), -limit, limit)   inside rects[q, s], else + 0
              with d^2 = (r - centers[q, s, 0])^2 + (c - centers[q, s, 1])^2, in cells
    local     + 0                                                              inside rects[q, s], else -inf
    dense     + values[q, k]

Shapes: B batch, H heads, Q queries, K keys, S segments, R rank. Source of the formulas: AQR (in the
line of MoME and CMT), restated in ``docs/operators.md``.
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

__all__ = [
    "Bias",
    "DenseBias",
    "GaussianBias",
    "GaussianField",
    "GlobalBias",
    "LocalMask",
    "NoBias",
    "RectsForm",
    "WindowBias",
]


@dataclass(frozen=True, eq=False)
class NoBias(Bias):
    """Nothing is added; the same as ``bias=None``."""

    kind: ClassVar[str] = "none"


@dataclass(frozen=True, eq=False)
class DenseBias(Bias):
    """A number for every score.

    Attributes:
        values: (B or 1, H or 1, Q, K) float; may hold -inf (a mask). A query whose row is all -inf
            has output 0 and gradient 0.
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
        """The values."""
        return self.values

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the values."""
        b, h, q, k = self.values.shape
        return b, h, q, k

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the values, cast."""
        return self.values.to(dtype or self.values.dtype)

    def score_mod(self) -> ScoreMod:
        """Look the value up."""
        return score_mods.dense(self.values)


class _WeightedBias(Bias):
    """A bias made of one weight per query and part of a grid; its subclasses are dataclasses."""

    grid: TokenGrid
    weight: Tensor

    @property
    def trainable(self) -> Tensor:
        """The weight with its head axis: (B, H or 1, Q, n)."""
        return self.weight.unsqueeze(1) if self.weight.ndim == 3 else self.weight

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H or 1, Q, K)."""
        b, h, q, _ = self.trainable.shape
        return b, h, q, self.grid.num_keys


@dataclass(frozen=True, eq=False)
class GlobalBias(_WeightedBias):
    """One number for all LiDAR keys and one for all camera keys of a query: exactly rank 2.

    Attributes:
        grid: the key axis.
        weight: (B, Q, 2) or (B, H, Q, 2) float, in logits: LiDAR, camera.
    """

    grid: TokenGrid
    weight: Tensor
    kind: ClassVar[str] = "global"

    def __post_init__(self) -> None:
        """Check the shape."""
        _check_weight(self, "B", "Q", 2)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Repeat each weight over its modality's keys."""
        weight = self.trainable.to(dtype or self.weight.dtype)
        parts = [
            weight[..., s.modality, None].expand(*weight.shape[:3], s.num_keys) for s in self.grid.segments
        ]
        return torch.cat(parts, dim=-1)

    def factors(self, rank: int | None = None) -> Factors:
        """Return u = weight and w = which modality a key has: exact."""
        if rank is not None and rank < GLOBAL_RANK:
            raise Unsupported(f"the global bias has rank {GLOBAL_RANK}, exactly and cheaply; got rank={rank}")
        u = self.trainable
        camera = torch.cat(
            [u.new_full((s.num_keys,), s.modality) for s in self.grid.segments]
        )  # a modality is 0 or 1
        w = torch.stack((1 - camera, camera), dim=-1)
        return Factors(u, w.expand(*u.shape[:2], -1, -1), u.new_zeros(u.shape[:2]))

    def rects_form(self) -> RectsForm:
        """Cover each segment with one rect."""
        b, _, q, _ = self.shape
        rects = self.grid.whole_rects(b, q, self.weight.device)
        return RectsForm(self.grid, rects, self.grid.per_segment(self.trainable), "add")

    def score_mod(self) -> ScoreMod:
        """Look the weight of the key's segment up."""
        return score_mods.per_segment(self.grid, self.grid.per_segment(self.trainable))


@dataclass(frozen=True, eq=False)
class WindowBias(_WeightedBias):
    """A weight inside one rectangle per query and segment, nothing outside.

    Attributes:
        grid: the key axis.
        rects: (B, Q, S, 4) int32, see ``TokenGrid.rects_around``.
        weight: (B, Q, S) or (B, H, Q, S) float, in logits, added as it is (the caller clamps).
    """

    grid: TokenGrid
    rects: Tensor
    weight: Tensor
    kind: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        """Check the shapes."""
        _check_rects(self.grid, self.rects)
        _check_weight(self, *self.rects.shape[:3])

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Fill the windows: per segment the outer product (weight * rows held) x (columns held)."""
        weight = self.trainable.to(dtype or self.weight.dtype)
        parts = []
        for which, rows, cols in self.grid.inside(self.rects):
            tall = weight[..., which, None] * rows.unsqueeze(1)  # (B, H or 1, Q, n, rows)
            wide = cols.unsqueeze(1).to(weight.dtype)  # (B, 1, Q, n, cols)
            parts.append((tall.unsqueeze(-1) * wide.unsqueeze(-2)).flatten(3))
        return torch.cat(parts, dim=-1)

    def rects_form(self) -> RectsForm:
        """Hand over the rects and weights as they are."""
        return RectsForm(self.grid, self.rects, self.trainable, "add")

    def score_mod(self) -> ScoreMod:
        """Add the weight if the key's cell lies inside."""
        return score_mods.window(self.grid, self.rects, self.trainable)


@dataclass(frozen=True, eq=False)
class GaussianBias(_WeightedBias):
    """A weight that falls off from a centre, inside one rectangle per query and segment.

    The gradient of the clamp is that of ``torch.clamp``: 1 up to and including the limit, 0 beyond.

    Attributes:
        grid: the key axis.
        rects: (B, Q, S, 4) int32, see ``TokenGrid.rects_around``.
        weight: (B, Q, S) or (B, H, Q, S) float, in logits at the centre, before the clamp.
        centers: (B, Q, S, 2) float: row, column, in cells (whole numbers are cell middles).
        sigma: standard deviation in cells.
        limit: largest absolute value added, in logits.
    """

    grid: TokenGrid
    rects: Tensor
    weight: Tensor
    centers: Tensor
    sigma: float
    limit: float
    kind: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        """Check shapes and numbers."""
        _check_rects(self.grid, self.rects)
        _check_weight(self, *self.rects.shape[:3])
        expected = (*self.rects.shape[:3], 2)
        if tuple(self.centers.shape) != expected or not self.centers.is_floating_point():
            got = f"{self.centers.dtype} {tuple(self.centers.shape)}"
            raise ValueError(f"GaussianBias expects float centers {expected}, got {got}")
        if not (self.sigma > 0 and self.limit > 0):
            raise ValueError(
                f"GaussianBias expects sigma > 0 and limit > 0, got {self.sigma} and {self.limit}"
            )

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Fill the windows with the clamped fall-off, computed in the dtype of the weights."""
        parts = []
        for which, rows, cols in self.grid.inside(self.rects):
            center = self.centers[:, :, which].to(self.weight.dtype)
            down = torch.arange(rows.shape[-1], device=rows.device) - center[..., 0, None]
            right = torch.arange(cols.shape[-1], device=cols.device) - center[..., 1, None]
            squared = (down**2).unsqueeze(-1) + (right**2).unsqueeze(-2)  # (B, Q, n, rows, cols)
            fall = torch.exp(squared * (-0.5 / self.sigma**2)).unsqueeze(1)
            bias = (self.trainable[..., which, None, None] * fall).clamp(-self.limit, self.limit)
            held = (rows.unsqueeze(-1) & cols.unsqueeze(-2)).unsqueeze(1)
            parts.append(torch.where(held, bias, 0.0).to(dtype or bias.dtype).flatten(3))
        return torch.cat(parts, dim=-1)

    def rects_form(self) -> RectsForm:
        """Hand over the rects, weights and fall-off as they are."""
        field = GaussianField(self.centers.detach(), self.sigma, self.limit)
        return RectsForm(self.grid, self.rects, self.trainable, "add", field)

    def score_mod(self) -> ScoreMod:
        """Add the clamped fall-off if the key's cell lies inside."""
        field = (self.centers.detach(), self.sigma, self.limit)
        return score_mods.gaussian(self.grid, self.rects, self.trainable, field)


@dataclass(frozen=True, eq=False)
class LocalMask(Bias):
    """Minus infinity outside all rectangles of a query (LAM, the mask of AQR's own attention).

    A query without any key has output 0 and gradient 0: that is the definition here, and tested.

    Attributes:
        grid: the key axis.
        rects: (B, Q, S, 4) int32, see ``TokenGrid.rects_around``.
    """

    grid: TokenGrid
    rects: Tensor
    kind: ClassVar[str] = "local"

    def __post_init__(self) -> None:
        """Check the shape."""
        _check_rects(self.grid, self.rects)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, 1, Q, K)."""
        b, q = self.rects.shape[:2]
        return b, 1, q, self.grid.num_keys

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Write 0 inside and -inf outside."""
        zero = torch.zeros((), dtype=dtype or torch.float32, device=self.rects.device)
        parts = [
            torch.where(rows.unsqueeze(-1) & cols.unsqueeze(-2), zero, -torch.inf).flatten(2)
            for _, rows, cols in self.grid.inside(self.rects)
        ]
        return torch.cat(parts, dim=-1).unsqueeze(1)

    def factors(self, rank: int | None = None) -> Factors:
        """Refuse: minus infinity is no sum of products."""
        raise Unsupported(
            f"a local mask has no factors (minus infinity is no sum of products), got rank={rank}"
        )

    def rects_form(self) -> RectsForm:
        """Hand over the rects as they are."""
        return RectsForm(self.grid, self.rects, None, "mask")

    def score_mod(self) -> ScoreMod:
        """Keep the score if the key's cell lies inside."""
        return score_mods.local(self.grid, self.rects)


def _check_rects(grid: TokenGrid, rects: Tensor) -> None:
    """Refuse rects of another shape or dtype than (B, Q, S, 4) int32."""
    if rects.dtype != torch.int32 or rects.ndim != 4 or tuple(rects.shape[2:]) != (grid.num_segments, 4):
        got = f"{rects.dtype} {tuple(rects.shape)}"
        raise ValueError(f"expected int32 rects (B, Q, {grid.num_segments}, 4), got {got}")


def _check_weight(bias: _WeightedBias, batch: int | str, queries: int | str, last: int) -> None:
    """Refuse weights of another shape than (B, Q, n) or (B, H, Q, n); a size given as a letter is free."""
    weight, sizes = bias.weight, (batch, queries, last)
    found = (*weight.shape[:1], *weight.shape[-2:])
    fits = all(isinstance(size, str) or size == got for size, got in zip(sizes, found, strict=False))
    if weight.ndim not in (3, 4) or not weight.is_floating_point() or not fits:
        expected = f"({batch}, {queries}, {last}) or ({batch}, H, {queries}, {last})"
        got = f"{weight.dtype} {tuple(weight.shape)}"
        raise ValueError(f"{type(bias).__name__} expects float weights {expected}, got {got}")
