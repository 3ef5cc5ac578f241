"""Attention bias from per-query sensor weights (the AttentionBiasGenerator of AQR).

A query whose LiDAR weight is high attends more to the BEV cells around its projection, one whose camera
weight is high more to the pixels around it. What is added to the score of query q and key k:

    clamp(scale * weight[q, modality(k)] * g, -limit, limit)    inside the window of q, else 0

with g = 1 (``window``), exp(-d^2 / (2 sigma^2)) (``gaussian``, d in cells), or no window at all (``global``).
Which of them a layer gets, and with windows of which size, is its site's choice; the generator says what a
layer gets whose config is silent.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from operators.bias import GaussianBias, GlobalBias, WindowBias
from operators.forms import Bias
from pipeline.config.plan import WINDOWED
from pipeline.detector.aqr.projection import ProjectedQueries

SATURATION = 5.0  # logits: softmax hardly changes beyond a shift of 5 (original code clamps the product here)

_KIND_OF = {"uniform": "window", "gaussian": "gaussian"}  # of a local bias, by its fall-off


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
    """Make the biases of the decoder's cross-attentions; one generator serves all layers.

    Args:
        window_lidar, window_camera: window sizes in cells (odd: centred; even: one more cell after) of the
            layers that name none.
        use_local_bias: False: no windows, one number for all LiDAR keys and one for all camera keys.
        fall_off: ``uniform`` or ``gaussian``: how the bias falls off within a window.
        sigma: of the gaussian fall-off, in cells.
        scale: initial value of ``bias_scale``.
        learnable_scale: False keeps ``bias_scale`` where it starts.
        num_scales: 1: one scale for all layers, as published; or as many as the decoder has layers.
        scale_range: ends between which ``bias_scale`` acts.
        max_bias: limit of the bias in logits; the smaller of it and 5 holds.
        init_cfg: see mmengine.

    Attributes:
        slopes: (L,) gradient that the last backward pass gave the scale in each layer, before they are
            summed where layers share one; None before. Of this rank's samples alone.

    Raises:
        BiasConfigError: a size, sigma or limit is not positive, the scale lies outside its range, or an
            unknown fall-off.
    """

    KINDS = ("global", "window", "gaussian")
    """What it makes."""

    def __init__(
        self,
        window_lidar: int,
        window_camera: int,
        use_local_bias: bool = True,
        fall_off: str = "uniform",
        sigma: float = 1.0,
        scale: float = 2.5,
        learnable_scale: bool = True,
        num_scales: int = 1,
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
        if fall_off not in ("uniform", "gaussian") or num_scales < 1:
            raise BiasConfigError(
                "expected fall_off 'uniform' or 'gaussian' and num_scales >= 1, got "
                f"fall_off={fall_off!r}, num_scales={num_scales}"
            )
        self.windows = (window_lidar, window_camera)
        self.default_kind = "global" if not use_local_bias else _KIND_OF[fall_off]
        self.sigma = sigma
        self.scale_range = (float(low), float(high))
        self.limit = min(SATURATION, max_bias)
        self.slopes: Tensor | None = None
        start = torch.full((num_scales,) if num_scales > 1 else (), float(scale))
        if learnable_scale:
            self.bias_scale = nn.Parameter(start)
        else:
            self.register_buffer("bias_scale", start)

    def forward(
        self,
        kinds: Sequence[str],
        weights: Tensor,
        geometry: ProjectedQueries,
        windows: Sequence[int | None] = (),
        scales: Tensor | None = None,
    ) -> list[Bias | None]:
        """Make the bias of every layer.

        Args:
            kinds: of each layer, ``none`` or one of ``KINDS``.
            weights: (B, Q, 2) in [-1, 1]: LiDAR, camera.
            geometry: where the queries project to.
            windows: of each layer, its window in cells or None (``windows_of``); empty: None for all.
            scales: what ``watched_scales`` returned; None: asks for it.

        Returns:
            Per layer a bias in the dtype of ``weights``, with gradients to them and ``bias_scale``; None for
            ``none``. Layers with windows of one size share them.

        Raises:
            BiasConfigError: another kind, or neither one scale nor one a layer.
        """
        unknown = sorted(set(kinds) - {"none", *self.KINDS})
        if unknown:
            raise BiasConfigError(
                f"the bias generator makes none, {', '.join(self.KINDS)}; got {', '.join(map(repr, unknown))}"
            )
        scales = self.watched_scales(len(kinds)) if scales is None else scales
        sizes = [self.windows_of(window) for window in windows or [None] * len(kinds)]
        wanted = {size for kind, size in zip(kinds, sizes, strict=True) if kind in WINDOWED}
        rects = {size: geometry.rects(size) for size in wanted}
        scaled = weights * scales.to(weights.dtype).view(-1, 1, 1, 1)
        heights = self._heights(set(kinds), scaled, geometry)
        return [
            None if kind == "none" else self._make(kind, heights[kind][i], geometry, rects.get(size))
            for i, (kind, size) in enumerate(zip(kinds, sizes, strict=True))
        ]

    def windows_of(self, window: int | None) -> tuple[int, int]:
        """Return the sizes (LiDAR, camera) of a layer's windows: those of the config, or one for both."""
        return self.windows if window is None else (window, window)

    def layer_scales(self, layers: int) -> Tensor:
        """Return the scale that acts in each of the layers, (L,): ``bias_scale`` within its range."""
        if self.bias_scale.numel() not in (1, layers):
            raise BiasConfigError(
                f"bias_config.num_scales={self.bias_scale.numel()}, but the decoder has {layers} layers; "
                f"expected 1 (one for all) or {layers} (one a layer)"
            )
        scale: Tensor = _InwardClamp.apply(self.bias_scale, *self.scale_range)  # type: ignore[no-untyped-call]
        return scale.expand(layers)

    def watched_scales(self, layers: int) -> Tensor:
        """Return ``layer_scales``, whose gradient will be kept as ``slopes``."""
        scales = self.layer_scales(layers)
        self.slopes = None
        if scales.requires_grad:
            scales.register_hook(self._keep_slopes)  # type: ignore[no-untyped-call]
        return scales

    def _keep_slopes(self, grad: Tensor) -> None:
        self.slopes = grad.detach()

    def _heights(
        self, kinds: set[str], scaled: Tensor, geometry: ProjectedQueries
    ) -> dict[str, tuple[Tensor, ...]]:
        """Return what a bias of each kind takes in each layer, from the scaled weights (L, B, Q, 2).

        For all layers at once: small kernels, whose launches took longer than they, six times each.
        """
        grid, clamped = geometry.grid, scaled.clamp(-self.limit, self.limit)
        found = {}
        if "global" in kinds:
            found["global"] = clamped.unbind()
        if "window" in kinds:
            found["window"] = grid.per_segment(clamped).unbind()
        if "gaussian" in kinds:
            found["gaussian"] = grid.per_segment(scaled).unbind()
        return found

    def _make(self, kind: str, height: Tensor, geometry: ProjectedQueries, rects: Tensor | None) -> Bias:
        """Make one bias from what ``_heights`` has for its layer."""
        grid = geometry.grid
        if kind == "global":
            return GlobalBias(grid, height)
        assert rects is not None  # made for every kind with windows
        if kind == "window":
            return WindowBias(grid, rects, height)
        centers = geometry.cells.to(height.dtype)
        return GaussianBias(grid, rects, height, centers, self.sigma, self.limit)
