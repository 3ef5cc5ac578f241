"""On the meta device modules have the shapes that they have elsewhere."""

import pytest
import torch
from torch import nn

from pipeline.detector.inspection.meta_device import meta_device


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Embedding(3, 4).weight,
        lambda: nn.init.normal_(torch.empty(2, 5), std=0.01),
        lambda: torch.empty(2, 5).normal_(0, 1),
        lambda: torch.randn(2, 5, dtype=torch.float64),
        lambda: nn.BatchNorm2d(4)(torch.empty(2, 4, 3, 5)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())(
            torch.empty(1, 3, 9, 8)
        ),
    ],
    ids=["embedding", "init.normal_", "normal_", "randn", "batch norm", "convolution"],
)
def test_shapes_are_those_of_the_cpu(make):
    real = make()
    with meta_device():
        other = make()
    assert other.device.type == "meta"
    assert (other.shape, other.dtype) == (real.shape, real.dtype)
