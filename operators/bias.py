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
on MoME and CMT; ``docs/operators.md`` has them too. The kinds with windows are in ``operators.window_bias``.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from operators import score_mods
from operators.factors import Factors
from operators.forms import FLOATS, Bias, RectsForm, WeightedBias, check_weight
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
        if self.values.ndim != 4 or self.values.dtype not in FLOATS:
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


@dataclass(frozen=True, eq=False)
class GlobalBias(WeightedBias):
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
        check_weight(self, "B", "Q", 2)

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
