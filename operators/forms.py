"""The interface that every bias implements, and the form that the ``rects`` implementation takes.

The biases and their meanings are in ``operators.bias``.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from operators.factors import Factors, truncate
from operators.grid import TokenGrid
from operators.score_mods import ScoreMod
from operators.spec import KINDS, Form, Unsupported

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes of q, k, v and of weights. PyTorch has no sums in float8."""


class GaussianField(NamedTuple):
    """A gaussian fall-off.

    Attributes:
        centers: (B, Q, S, 2) float: row and column, in cells.
        sigma: standard deviation, in cells.
        limit: the bias is clamped to [-limit, limit], in logits.
    """

    centers: Tensor
    sigma: float
    limit: float


@dataclass(frozen=True, eq=False)
class RectsForm:
    """A bias, or a mask, as rectangles of keys: one rectangle and one weight per query and segment.

    Attributes:
        grid: the key axis.
        rects: (B, Q, S, 4) int32: first row, last row, first column, last column, all inclusive. A rect whose
            last row or column is before its first holds no key. May be a view with stride 0 over B and Q.
        weight: (B, H or 1, Q, S) float, in logits; None for a mask.
        mode: ``add``: the weight is added inside the rect. ``mask``: -inf is added outside all rects.
        gaussian: the weight falls off from a centre and is clamped (``GaussianBias``); None: it is uniform.
    """

    grid: TokenGrid
    rects: Tensor
    weight: Tensor | None
    mode: Literal["add", "mask"]
    gaussian: GaussianField | None = None


class Bias:
    """Base class of all biases. Subclasses are frozen dataclasses of tensors and set ``kind``."""

    kind: ClassVar[str]

    @property
    def forms(self) -> frozenset[Form]:
        """The forms in which this bias is exact."""
        return KINDS[self.kind].forms

    @property
    def key_grid(self) -> TokenGrid | None:
        """The key axis; None for a bias without a grid."""
        return getattr(self, "grid", None)

    @property
    def trainable(self) -> Tensor | None:
        """The tensor that takes gradients: (B or 1, H or 1, Q, ...), or None."""
        return None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Field name -> tensor, for all fields that are tensors."""
        # Every subclass is a dataclass.
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H or 1, Q, K). B may be 1 for a dense bias that all samples share."""
        raise NotImplementedError

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Render as a tensor (B, H or 1, Q, K) in ``dtype``; None: the dtype of the weights."""
        raise NotImplementedError

    def factors(self, rank: int | None = None) -> Factors:
        """Render as u (B, H or 1, Q, R) and w (B, H or 1, K, R) with bias = u @ w.mT.

        Args:
            rank: R, at which the bias is cut off. The result holds the relative error of that.

        Raises:
            Unsupported: this kind has no exact factors, and no rank is given.
        """
        if rank is None:
            raise Unsupported(f"the {self.kind} bias has no exact factors; name a rank to approximate it")
        return truncate(self.dense(), rank)

    def rects_form(self) -> RectsForm:
        """Render as rectangles of keys.

        Raises:
            Unsupported: this kind has no rectangles.
        """
        raise Unsupported(f"the {self.kind} bias is not made of rectangles")

    def score_mod(self) -> ScoreMod:
        """Render as FlexAttention's score modifier, a function of (score, b, h, q, k)."""
        raise NotImplementedError


class WeightedBias(Bias):
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


def check_weight(bias: WeightedBias, batch: int | str, queries: int | str, last: int) -> None:
    """Refuse weights of another shape than (B, Q, n) or (B, H, Q, n); a size given as a letter may be any."""
    weight, sizes = bias.weight, (batch, queries, last)
    actual = (*weight.shape[:1], *weight.shape[-2:])
    fits = all(isinstance(size, str) or size == got for size, got in zip(sizes, actual, strict=False))
    if weight.ndim not in (3, 4) or weight.dtype not in FLOATS or not fits:
        expected = f"({batch}, {queries}, {last}) or ({batch}, H, {queries}, {last})"
        got = f"{weight.dtype} {tuple(weight.shape)}"
        raise ValueError(
            f"{type(bias).__name__} expects float weights {expected}, got {got}; grid.per_segment(weight) "
            "gives every map of a grid its sensor's weight"
        )
