"""What every bias offers, and the form that the rects implementation takes.

The biases themselves, and what they mean, are in ``operators.bias``.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from operators.factors import Factors, truncate
from operators.grid import TokenGrid
from operators.score_mods import ScoreMod
from operators.spec import FORMS_OF_KIND, Form, Unsupported


class GaussianField(NamedTuple):
    """A gaussian fall-off: centers (B, Q, S, 2) as (row, column); sigma in cells; limit in logits."""

    centers: Tensor
    sigma: float
    limit: float


@dataclass(frozen=True, eq=False)
class RectsForm:
    """A bias, or a mask, as rectangles of keys: a few numbers per query and segment.

    Attributes:
        grid: the key axis.
        rects: (B, Q, S, 4) int32: row first, row last, column first, column last, inclusive; a rect whose
            last lies before its first holds no key. May be a view with stride 0 over B and Q.
        weight: (B, H or 1, Q, S) float, in logits; None for a mask.
        mode: ``add``: the weight is added inside; ``mask``: minus infinity outside all rects.
        gaussian: if not None, the weight falls off from the centre and is clamped (see the module).
    """

    grid: TokenGrid
    rects: Tensor
    weight: Tensor | None
    mode: Literal["add", "mask"]
    gaussian: GaussianField | None = None


class Bias:
    """What all biases share. Subclasses are frozen dataclasses of tensors that set ``kind``."""

    kind: ClassVar[str]

    @property
    def forms(self) -> frozenset[Form]:
        """The exact forms of this bias."""
        return FORMS_OF_KIND[self.kind]

    @property
    def key_grid(self) -> TokenGrid | None:
        """The key axis, if this bias has one."""
        return getattr(self, "grid", None)

    @property
    def trainable(self) -> Tensor | None:
        """The tensor that takes gradients: (B or 1, H or 1, Q, ...), or None."""
        return None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of this bias by its field's name."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]  # every subclass is one
        return {name: value for name, value in every.items() if isinstance(value, Tensor)}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H or 1, Q, K); B may be 1 for a dense bias that all samples share."""
        raise NotImplementedError

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Render as (B, H or 1, Q, K), in ``dtype`` (that of the weights if None)."""
        raise NotImplementedError

    def factors(self, rank: int | None = None) -> Factors:
        """Render as u (B, H or 1, Q, R) and w (B, H or 1, K, R) with bias = u @ w.mT.

        Args:
            rank: where to cut the bias off; the relative error of the cut is in the result.

        Raises:
            Unsupported: this kind has no exact factors and no rank was named.
        """
        if rank is None:
            raise Unsupported(
                f"the {self.kind} bias has no exact factors; name a rank to cut it off (an approximation)"
            )
        return truncate(self.dense(), rank)

    def rects_form(self) -> RectsForm:
        """Render as rectangles of keys."""
        raise Unsupported(f"the {self.kind} bias is not made of rectangles")

    def score_mod(self) -> ScoreMod:
        """Render as FlexAttention's function of (score, b, h, q, k)."""
        raise NotImplementedError
