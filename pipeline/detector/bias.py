"""Attention bias from per-query sensor weights (the AttentionBiasGenerator of AQR).

A query whose LiDAR weight is high attends more to the BEV cells around its projection, one whose camera
weight is high more to the pixels around it. What is added to the score of query q and key k:

    clamp(scale * weight[q, modality(k)] * g, -limit, limit)    inside the window of q, else 0

with g = 1 (``window``), exp(-d^2 / (2 sigma^2)) (``gaussian``, d in cells), or no window at all (``global``).
"""

from collections.abc import Callable
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from operators.bias import Bias, GaussianBias, GlobalBias, WindowBias
from pipeline.detector.aqr import ProjectedQueries

SATURATION = 5.0  # logits: softmax hardly changes beyond a shift of 5 (original code clamps the product here)


class BiasConfigError(ValueError):
    """Numbers of the bias generator that contradict each other, or a kind it does not make."""


class _InwardClamp(torch.autograd.Function):
    """Clamp whose gradient at and beyond an end passes if a descent step along it leads back inside.

    ``torch.clamp`` gives no gradient beyond its ends, so that a parameter that got there never returns;
    a plain straight-through estimator lets it wander off without bound. This does neither.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        """Cut ``value`` to [low, high]."""
        ctx.save_for_backward(value)
        ctx.ends = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Stop what leads further out: descent moves against the gradient."""
        (value,), (grad,), (low, high) = ctx.saved_tensors, grads, ctx.ends
        outward = ((value >= high) & (grad < 0)) | ((value <= low) & (grad > 0))
        return grad.masked_fill(outward, 0.0), None, None


@MODELS.register_module()
class AttentionBiasGenerator(BaseModule):
    """Make the bias of a decoder cross-attention; one generator serves all layers.

    Args:
        window_lidar, window_camera: window sizes in cells (odd: centred; even: one more cell after).
        sigma: of the gaussian kind, in cells.
        scale: initial value of the learned ``bias_scale``.
        scale_range: ends between which ``bias_scale`` acts.
        max_bias: limit of the bias in logits; the smaller of it and 5 holds.
        init_cfg: see mmengine.

    Raises:
        BiasConfigError: a size, sigma or limit is not positive, or the scale lies outside its range.
    """

    KINDS = ("global", "window", "gaussian")
    """What ``forward`` makes."""

    def __init__(
        self,
        window_lidar: int,
        window_camera: int,
        sigma: float = 1.0,
        scale: float = 2.5,
        scale_range: tuple[float, float] = (0.5, 5.0),
        max_bias: float = SATURATION,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        low, high = scale_range
        if min(window_lidar, window_camera) < 1 or min(sigma, max_bias) <= 0 or not 0 < low <= scale <= high:
            raise BiasConfigError(
                "expected windows >= 1 cell, sigma and max_bias > 0, and 0 < low <= scale <= high, got "
                f"windows {window_lidar} and {window_camera}, sigma={sigma}, max_bias={max_bias}, "
                f"scale={scale} in {scale_range}"
            )
        self.windows = (window_lidar, window_camera)
        self.sigma = sigma
        self.scale_range = (float(low), float(high))
        self.limit = min(SATURATION, max_bias)
        self.bias_scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, kind: str, weights: Tensor, geometry: ProjectedQueries) -> Bias | None:
        """Make one bias.

        Args:
            kind: ``none`` or one of ``KINDS``.
            weights: (B, Q, 2) in [-1, 1]: LiDAR, camera.
            geometry: where the queries project to.

        Returns:
            A bias in the dtype of ``weights``, with gradients to them and ``bias_scale``; None for ``none``.

        Raises:
            BiasConfigError: another kind.
        """
        if kind == "none":
            return None
        makers: dict[str, Callable[[Tensor, ProjectedQueries], Bias]] = {
            "global": self._global,
            "window": self._window,
            "gaussian": self._gaussian,
        }
        if kind not in makers:
            raise BiasConfigError(f"the bias generator makes none, {', '.join(self.KINDS)}; got {kind!r}")
        scale: Tensor = _InwardClamp.apply(self.bias_scale, *self.scale_range)  # type: ignore[no-untyped-call]
        return makers[kind](weights * scale.to(weights.dtype), geometry)

    def _global(self, scaled: Tensor, geometry: ProjectedQueries) -> Bias:
        return GlobalBias(geometry.grid, scaled.clamp(-self.limit, self.limit))

    def _window(self, scaled: Tensor, geometry: ProjectedQueries) -> Bias:
        weight = geometry.grid.per_segment(scaled.clamp(-self.limit, self.limit))
        return WindowBias(geometry.grid, geometry.rects(self.windows), weight)

    def _gaussian(self, scaled: Tensor, geometry: ProjectedQueries) -> Bias:
        return GaussianBias(
            geometry.grid,
            geometry.rects(self.windows),
            geometry.grid.per_segment(scaled),
            geometry.cells.to(scaled.dtype),
            self.sigma,
            self.limit,
        )
