"""CMT's image neck, and the grid mask before the backbone. The backbone is mmdet's or ``vovnet``."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn


class ChannelError(ValueError):
    """The feature maps do not fit the neck."""


class _Conv(nn.Module):
    """A convolution and perhaps a norm, with the parameter names of mmcv's ``ConvModule``.

    As there, a convolution before a norm has no bias.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, norm_cfg: dict[str, Any] | None
    ) -> None:
        super().__init__()
        bias = norm_cfg is None
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
        self.norm = None
        if norm_cfg is not None:
            self.norm, norm = build_norm_layer(norm_cfg, out_channels)
            self.add_module(self.norm, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, and normalise."""
        x = self.conv(x)
        return x if self.norm is None else cast(Tensor, self.get_submodule(self.norm)(x))


@MODELS.register_module()
class CPFPN(BaseModule):
    """Feature pyramid with one output convolution, on the finest level only (PETR, CMT).

    It has 1x1 lateral convolutions, nearest up-sampling from coarse to fine with addition, and a 3x3
    convolution on level 0. The other levels are returned after the addition. Source: junjie18/CMT,
    ``cp_fpn.py``.

    Args:
        in_channels: channels of each level, finest first.
        out_channels: channels of every output.
        num_outs: number of outputs; must be the number of levels.
        norm_cfg: norm after every convolution, such as ``dict(type='BN')``; None: none, as published.
        init_cfg: see mmengine; Xavier-uniform by default, as published.

    Raises:
        ChannelError: ``num_outs`` is not the number of levels.
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        num_outs: int | None = None,
        norm_cfg: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg or {"type": "Xavier", "layer": "Conv2d", "distribution": "uniform"})
        if num_outs not in (None, len(in_channels)):
            raise ChannelError(f"CPFPN.num_outs: expected {len(in_channels)}, one per level, got {num_outs}")
        self.lateral_convs = nn.ModuleList(_Conv(n, out_channels, 1, norm_cfg) for n in in_channels)
        self.fpn_convs = nn.ModuleList([_Conv(out_channels, out_channels, 3, norm_cfg)])

    def forward(self, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Merge maps (N, C_i, h_i, w_i), finest first, into as many maps (N, out_channels, h_i, w_i).

        Raises:
            ChannelError: another number of maps than levels.
        """
        if len(levels) != len(self.lateral_convs):
            raise ChannelError(f"CPFPN was built for {len(self.lateral_convs)} levels, got {len(levels)}")
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, levels, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(
                merged[i], size=merged[i - 1].shape[-2:], mode="nearest"
            )
        return (self.fpn_convs[0](merged[0]), *merged[1:])


class GridMask(nn.Module):
    """In training, set a regular grid of rectangles to zero, the same in all images of a batch.

    Stripes of rows and columns are kept; the rectangles between them become zero. This is mode 1 of arXiv
    2001.04086 as CMT has it: on normalised images, without rotation.

    Args:
        ratio: width of a stripe divided by the period.
        probability: probability that a batch is masked.
    """

    def __init__(self, ratio: float = 0.5, probability: float = 0.7) -> None:
        super().__init__()
        self.ratio, self.probability = ratio, probability

    def forward(self, images: Tensor) -> Tensor:
        """Mask images (N, C, H, W). The draws come from torch's CPU generator, the same on every device."""
        if not self.training or torch.rand(()) > self.probability:
            return images
        height, width = images.shape[-2:]
        period = int(torch.randint(2, height, ()))
        stripe = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        first_row, first_col = torch.randint(period, (2,)).tolist()
        row = (torch.arange(height, device=images.device) + first_row) % period < stripe
        col = (torch.arange(width, device=images.device) + first_col) % period < stripe
        return images * (row[:, None] | col)
