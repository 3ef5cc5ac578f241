"""The feed-forward part of a decoder layer."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from pipeline.detector.acceleration.recompute import recomputed


class FFN(nn.Module):
    """Two linear layers with a residual; parameter names ``layers.0.0`` and ``layers.1`` as in mmcv.

    Attributes:
        recompute: compute the first layer again in the backward pass instead of keeping its output.
    """

    def __init__(
        self,
        embed_dims: int,
        feedforward_channels: int,
        num_fcs: int = 2,
        ffn_drop: float = 0.0,
        act_cfg: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if num_fcs != 2:
            raise ValueError(f"ffn_cfgs.num_fcs: expected 2, got {num_fcs}")
        if act_cfg is not None and act_cfg["type"] != "ReLU":
            raise ValueError(f"ffn_cfgs.act_cfg: expected ReLU, got {act_cfg['type']!r}")
        inner = nn.Sequential(nn.Linear(embed_dims, feedforward_channels), nn.ReLU(), nn.Dropout(ffn_drop))
        self.layers = nn.Sequential(inner, nn.Linear(feedforward_channels, embed_dims), nn.Dropout(ffn_drop))
        self.recompute = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C), with the residual added."""
        hidden = recomputed(self._hidden, x) if self.recompute else self._hidden(x)
        dropout = cast(nn.Sequential, self.layers[0])[2]
        return x + cast(Tensor, self.layers[2](self.layers[1](dropout(hidden))))

    def _hidden(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., feedforward_channels), before dropout, which must not be drawn twice."""
        linear, relu, _ = cast(nn.Sequential, self.layers[0])
        return cast(Tensor, relu(linear(x)))
