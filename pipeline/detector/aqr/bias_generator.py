"""Attention bias from per-query sensor weights (the AttentionBiasGenerator of AQR).

A query with a high LiDAR weight attends more to the BEV cells around its projection, and one with a high
camera weight more to the pixels around its projection. What is added to the score of query q and key k:

    clamp(scale * weight[q, modality(k)] * g, -limit, limit)    inside the window of q, else 0

Here g = 1 for ``window``, and g = exp(-d^2 / (2 sigma^2)) with d in cells for ``gaussian``. For ``global`` g
= 1 and there is no window. The kind and the window size of a layer are the choice of its site. The generator
holds the defaults for layers whose config names none.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from operators.bias import GlobalBias
from operators.forms import Bias
from operators.spec import WEIGHTED_KINDS, WINDOWED_KINDS
from operators.window_bias import FALL_OFFS, WindowBias
from pipeline.detector.aqr.projection import ProjectedQueries

SATURATION = 5.0  # logits: a larger shift hardly changes a softmax (the published code clamps here, too)

UNIFORM = "uniform"
"""The ``fall_off`` of a bias that is the same in all of its window."""


def kind_of(fall_off: str) -> str:
    """Return the kind of a local bias: ``window``, or that of its fall-off."""
    return "window" if fall_off == UNIFORM else fall_off


class BiasConfigError(ValueError):
    """The settings of the bias generator contradict each other, or it does not make a kind."""


class _InwardClamp(torch.autograd.Function):
    """Clamp that passes a gradient at and beyond an end if a descent step along it leads back inside.

    ``torch.clamp`` gives no gradient beyond its ends, so a parameter beyond them never comes back. A
    straight-through estimator lets it move away without bound.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        """Cut ``value`` to [low, high]."""
        ctx.save_for_backward(value)
        ctx.ends = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Set gradients to 0 whose descent step, which is against the gradient, leads further out."""
        (value,), (grad,), (low, high) = ctx.saved_tensors, grads, ctx.ends
        outward = ((value >= high) & (grad < 0)) | ((value <= low) & (grad > 0))
        return grad.masked_fill(outward, 0.0), None, None


@MODELS.register_module()
class AttentionBiasGenerator(BaseModule):
    """Make the biases of the decoder's cross-attentions. One generator serves all layers.

    Args:
        window_lidar, window_camera: window sizes in cells for layers whose choice names none. An odd window
            is centred on the query's cell; an even one has one more cell after it.
        use_local_bias: False: no windows, one number for all LiDAR keys and one for all camera keys.
        fall_off: ``uniform``, or one of ``operators.window_bias.FALL_OFFS``: how the bias falls off within a
            window.
        sigma: of the fall-off, in cells.
        scale: initial value of ``bias_scale``.
        learnable_scale: False: ``bias_scale`` keeps its initial value.
        num_scales: 1: one scale for all layers, as published; or the number of decoder layers.
        scale_range: ``bias_scale`` is clamped to this range.
        max_bias: limit of the bias in logits; values above 5 act as 5.
        init_cfg: see mmengine.

    Attributes:
        slopes: (L,) gradient of the scale in each layer from the last backward pass, before the sum over
            layers that share a scale. It covers only the samples of this rank. None before the first one.

    Raises:
        BiasConfigError: a size, sigma or limit is not positive, the scale lies outside its range, or the
            fall-off is unknown.
    """

    KINDS = WEIGHTED_KINDS
    """Kinds of bias that the generator makes."""

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
        whole = all(isinstance(size, int) and size >= 1 for size in (window_lidar, window_camera))
        if not whole or min(sigma, max_bias) <= 0 or not 0 < low <= scale <= high:
            raise BiasConfigError(
                "expected windows >= 1 cell in whole numbers, sigma and max_bias > 0, and 0 < low <= scale "
                f"<= high, got windows {window_lidar} and {window_camera}, sigma={sigma}, "
                f"max_bias={max_bias}, scale={scale} in {scale_range}"
            )
        if fall_off not in (UNIFORM, *FALL_OFFS) or num_scales < 1:
            known = " or ".join(map(repr, (UNIFORM, *FALL_OFFS)))
            raise BiasConfigError(
                f"expected fall_off {known} and num_scales >= 1, got "
                f"fall_off={fall_off!r}, num_scales={num_scales}"
            )
        self.window_sizes = (window_lidar, window_camera)
        self.default_kind = "global" if not use_local_bias else kind_of(fall_off)
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
            kinds: per layer, ``none`` or one of ``KINDS``.
            weights: (B, Q, 2) in [-1, 1]: LiDAR, camera.
            geometry: where the queries project to.
            windows: per layer, its window size in cells or None (``window_sizes_of``); empty: None for all.
            scales: what ``watched_scales`` returned; None: it is called here.

        Returns:
            Per layer a bias in the dtype of ``weights``, with gradients to ``weights`` and ``bias_scale``;
            None for ``none``. Layers with the same window size share one tensor of windows.

        Raises:
            BiasConfigError: an unknown kind, or a number of scales that is neither 1 nor the number of
                layers.
        """
        unknown = sorted(set(kinds) - {"none", *self.KINDS})
        if unknown:
            raise BiasConfigError(
                f"the bias generator makes none, {', '.join(self.KINDS)}; got {', '.join(map(repr, unknown))}"
            )
        scales = self.watched_scales(len(kinds)) if scales is None else scales
        sizes = [self.window_sizes_of(window) for window in windows or [None] * len(kinds)]
        needed = {size for kind, size in zip(kinds, sizes, strict=True) if kind in WINDOWED_KINDS}
        by_size = {size: geometry.windows(size) for size in needed}
        scaled = weights * scales.to(weights.dtype).view(-1, 1, 1, 1)
        by_kind = self._scaled_weights(set(kinds), scaled, geometry)
        return [
            None if kind == "none" else self._make(kind, by_kind[kind][i], geometry, by_size.get(size))
            for i, (kind, size) in enumerate(zip(kinds, sizes, strict=True))
        ]

    def window_sizes_of(self, window: int | None) -> tuple[int, int]:
        """Return the window sizes (LiDAR, camera) of a layer that names one size, or none (None)."""
        return self.window_sizes if window is None else (window, window)

    def layer_scales(self, layers: int) -> Tensor:
        """Return the scale of each layer, (L,): ``bias_scale`` clamped to its range.

        Raises:
            BiasConfigError: the number of scales is neither 1 nor ``layers``.
        """
        if self.bias_scale.numel() not in (1, layers):
            raise BiasConfigError(
                f"bias_config.num_scales={self.bias_scale.numel()}, but the decoder has {layers} layers; "
                f"expected 1 (one for all) or {layers} (one a layer)"
            )
        scale: Tensor = _InwardClamp.apply(self.bias_scale, *self.scale_range)  # type: ignore[no-untyped-call]
        return scale.expand(layers)

    def watched_scales(self, layers: int) -> Tensor:
        """Return ``layer_scales``; a backward pass will store their gradient in ``slopes``."""
        scales = self.layer_scales(layers)
        self.slopes = None
        if scales.requires_grad:
            scales.register_hook(self._keep_slopes)  # type: ignore[no-untyped-call]
        return scales

    def _keep_slopes(self, grad: Tensor) -> None:
        self.slopes = grad.detach()

    def _scaled_weights(
        self, kinds: set[str], scaled: Tensor, geometry: ProjectedQueries
    ) -> dict[str, tuple[Tensor, ...]]:
        """Return kind -> the weight of every layer's bias, from the scaled weights (L, B, Q, 2).

        All layers are computed together, because launching these small kernels takes longer than running
        them.
        """
        grid, clamped = geometry.grid, scaled.clamp(-self.limit, self.limit)
        by_kind = {}
        if "global" in kinds:
            by_kind["global"] = clamped.unbind()
        if "window" in kinds:
            by_kind["window"] = grid.per_segment(clamped).unbind()
        for kind in kinds & FALL_OFFS.keys():
            by_kind[kind] = grid.per_segment(scaled).unbind()
        return by_kind

    def _make(
        self, kind: str, scaled_weight: Tensor, geometry: ProjectedQueries, windows: Tensor | None
    ) -> Bias:
        """Make one bias from the scaled weight of its layer."""
        grid = geometry.grid
        if kind == "global":
            return GlobalBias(grid, scaled_weight)
        assert windows is not None  # made for every kind with windows
        if kind == "window":
            return WindowBias(grid, windows, scaled_weight)
        if kind in FALL_OFFS:
            centers = geometry.cells.to(scaled_weight.dtype)
            return FALL_OFFS[kind](grid, windows, scaled_weight, centers, self.sigma, self.limit)
        raise BiasConfigError(f"no bias of the kind {kind!r} is made here; expected one of {self.KINDS}")
