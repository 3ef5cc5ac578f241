"""Channels-last memory format: what cuDNN's half-precision convolutions need for weights and maps."""

from typing import Any

import torch
from torch import Tensor, nn


def convolutions_channels_last(model: Any) -> Any:
    """Put the weights of all 2-D convolutions of a model into channels-last order; values stay the same."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def maps_channels_last(maps: Tensor) -> Tensor:
    """Return maps (N, C, H, W) in channels-last order on a GPU; unchanged on a CPU."""
    return maps.contiguous(memory_format=torch.channels_last) if maps.is_cuda else maps
