"""Biases and masks that are confined to windows: ``window``, ``gaussian`` and ``local``.

A window is a rectangle of keys, one per query and segment. The formulas are in ``operators.bias``.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from operators import score_mods
from operators.factors import Factors
from operators.forms import FLOATS, Bias, GaussianField, RectsForm, WeightedBias, check_weight
from operators.grid import TokenGrid
from operators.score_mods import ScoreMod
from operators.spec import Unsupported


@dataclass(frozen=True, eq=False)
class WindowBias(WeightedBias):
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
        check_weight(self, *self.windows.shape[:3])

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight inside the windows and 0 outside, (B, H or 1, Q, K).

        A weight that ``dtype`` cannot hold is infinite inside its window, and nowhere else.
        """
        weight = self.trainable.to(dtype or self.weight.dtype)
        parts = []
        for which, rows, cols in self.grid.inside(self.windows):
            inside = (rows.unsqueeze(-1) & cols.unsqueeze(-2)).unsqueeze(1)  # (B, 1, Q, n, rows, cols)
            parts.append(torch.where(inside, weight[..., which, None, None], 0.0).flatten(3))
        return torch.cat(parts, dim=-1)

    def rects_form(self) -> RectsForm:
        """Return the windows and weights, without a copy."""
        return RectsForm(self.grid, self.windows, self.trainable, "add")

    def score_mod(self) -> ScoreMod:
        """Return a function that adds the weight if the key's cell lies in the window."""
        return score_mods.window(self.grid, self.windows, self.trainable)


@dataclass(frozen=True, eq=False)
class FallOffBias(WeightedBias):
    """A weight that falls off from a centre, inside one window per query and segment.

    A subclass names its ``kind`` and gives its ``fall_off``, and is then in ``FALL_OFFS``.

    The gradient of the clamp is that of ``torch.clamp``: 1 up to and including the limit, 0 beyond.

    Attributes:
        grid: the key axis.
        windows: (B, Q, S, 4) int32, see ``TokenGrid.windows_around``.
        weight: (B, Q, S) or (B, H, Q, S) float, in logits at the centre, before the clamp.
        centers: (B, Q, S, 2) float: row, column, in cells (whole numbers are cell middles).
        sigma: scale of the fall-off in cells.
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

    def __init_subclass__(cls, **options: Any) -> None:
        """Register the kind."""
        super().__init_subclass__(**options)
        FALL_OFFS[cls.kind] = cls

    @abstractmethod
    def fall_off(self) -> Callable[[Tensor], Tensor]:
        """Return a function of the squared distance from the centre, in cells: 1 at the centre."""

    def __post_init__(self) -> None:
        """Check shapes and numbers."""
        _check_windows(self.grid, self.windows)
        check_weight(self, *self.windows.shape[:3])
        expected = (*self.windows.shape[:3], 2)
        if tuple(self.centers.shape) != expected or self.centers.dtype not in FLOATS:
            got = f"{self.centers.dtype} {tuple(self.centers.shape)}"
            raise ValueError(f"{type(self).__name__} expects float centers {expected}, got {got}")
        if isinstance(self.sigma, Tensor) or isinstance(self.limit, Tensor):
            raise TypeError(f"{type(self).__name__}: sigma and limit are numbers; a gradient would be lost")
        if not (self.sigma > 0 and self.limit > 0):
            raise ValueError(
                f"{type(self).__name__} expects sigma > 0 and limit > 0, got {self.sigma} and {self.limit}"
            )

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the clamped fall-off inside the windows and 0 outside, (B, H or 1, Q, K).

        It is computed in the dtype of the weights.
        """
        fall_off, parts = self.fall_off(), []
        for which, rows, cols in self.grid.inside(self.windows):
            center = self.centers[:, :, which].to(self.weight.dtype)
            down = torch.arange(rows.shape[-1], device=rows.device) - center[..., 0, None]
            right = torch.arange(cols.shape[-1], device=cols.device) - center[..., 1, None]
            squared = (down**2).unsqueeze(-1) + (right**2).unsqueeze(-2)  # (B, Q, n, rows, cols)
            fall = fall_off(squared).unsqueeze(1)
            bias = (self.trainable[..., which, None, None] * fall).clamp(-self.limit, self.limit)
            inside = (rows.unsqueeze(-1) & cols.unsqueeze(-2)).unsqueeze(1)
            parts.append(torch.where(inside, bias, 0.0).to(dtype or bias.dtype).flatten(3))
        return torch.cat(parts, dim=-1)

    def score_mod(self) -> ScoreMod:
        """Return a function that adds the clamped fall-off if the key's cell lies in the window."""
        field = (self.centers.detach(), self.fall_off(), self.limit)
        return score_mods.falling(self.grid, self.windows, self.trainable, field)


FALL_OFFS: dict[str, type[FallOffBias]] = {}
"""Kind -> class of the biases that fall off from a centre."""


@dataclass(frozen=True, eq=False)
class GaussianBias(FallOffBias):
    """A weight that falls off as exp(-d^2 / (2 sigma^2)), with d in cells.

    ``centers`` (B, Q, S, 2), ``sigma`` in cells and ``limit`` in logits are as in ``FallOffBias``.
    """

    kind: ClassVar[str] = "gaussian"

    def fall_off(self) -> Callable[[Tensor], Tensor]:
        """Return exp(-d^2 / (2 sigma^2)) as a function of d^2."""
        slope = -0.5 / self.sigma**2
        return lambda squared: torch.exp(squared * slope)

    def rects_form(self) -> RectsForm:
        """Return the windows, weights and fall-off, without a copy."""
        field = GaussianField(self.centers.detach(), self.sigma, self.limit)
        return RectsForm(self.grid, self.windows, self.trainable, "add", field)


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

    @property
    def reaches(self) -> Tensor:
        """Whether a query has a key, (B, Q) bool."""
        first_row, last_row, first_col, last_col = self.windows.unbind(-1)
        return ((first_row <= last_row) & (first_col <= last_col)).any(dim=-1)

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
