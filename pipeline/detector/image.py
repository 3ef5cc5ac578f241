"""Image branch: the neck of CMT; the backbone is mmdet's."""

from typing import Any

import torch.nn.functional as F
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn


class ChannelError(ValueError):
    """Feature maps that do not fit the neck they go into."""


class _Conv(nn.Module):
    """A convolution under the name ``conv``, as the published state dicts have it."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self.conv(x)


@MODELS.register_module()
class CPFPN(BaseModule):
    """Feature pyramid with one output convolution, on the finest level only (PETR, CMT).

    1x1 lateral convolutions, nearest up-sampling from coarse to fine and addition, then a 3x3
    convolution on level 0; the other levels leave as raw laterals. Source: junjie18/CMT, ``cp_fpn.py``.

    Args:
        in_channels: of each level, finest first.
        out_channels: of every output.
        init_cfg: see mmengine; Xavier-uniform by default, as published.
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg or {"type": "Xavier", "layer": "Conv2d", "distribution": "uniform"})
        self.lateral_convs = nn.ModuleList(_Conv(n, out_channels, 1) for n in in_channels)
        self.fpn_convs = nn.ModuleList([_Conv(out_channels, out_channels, 3)])

    def forward(self, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Merge (N, C_i, h_i, w_i) maps, finest first, into as many (N, out_channels, h_i, w_i)."""
        if len(levels) != len(self.lateral_convs):
            raise ChannelError(f"CPFPN was built for {len(self.lateral_convs)} levels, got {len(levels)}")
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, levels, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(
                merged[i], size=merged[i - 1].shape[-2:], mode="nearest"
            )
        return (self.fpn_convs[0](merged[0]), *merged[1:])
