"""On the meta device modules have the shapes that they have elsewhere."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.detector.inspection.meta_device import meta_device

NECK = {
    "size": lambda: F.interpolate(torch.empty(2, 4, 3, 5), size=(7, 9), mode="nearest"),
    "factor": lambda: F.interpolate(torch.empty(2, 4, 3, 5), scale_factor=2.5, mode="bilinear"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 2, stride=2)(torch.empty(2, 4, 3, 5)),
    "cat": lambda: torch.cat([torch.empty(2, 4, 3), torch.empty(2, 1, 3)], 1),
    "in place": lambda: torch.empty(2, 4, 3).add_(torch.empty(4, 1)),
    "hardsigmoid": lambda: F.hardsigmoid(torch.empty(2, 4)) * torch.empty(3, 2, 1),
}


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
        *NECK.values(),
    ],
    ids=["embedding", "init.normal_", "normal_", "randn", "batch norm", "convolution", *NECK],
)
def test_shapes_are_those_of_the_cpu(make):
    real = make()
    with meta_device():
        other = make()
    assert other.device.type == "meta"
    assert (other.shape, other.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm2d(4)(torch.empty(2, 8, 3, 5)),
        lambda: nn.Conv2d(4, 6, 3)(torch.empty(2, 8, 3, 5)),
        lambda: torch.empty(2, 8) + torch.empty(3, 7),
    ],
    ids=["batch norm", "convolution", "sum"],
)
def test_sizes_that_do_not_fit_are_refused(make):
    with pytest.raises(RuntimeError):
        make()
    with pytest.raises(RuntimeError), meta_device():
        make()


LOADS = """
import sys, torch
from pipeline.detector.inspection.meta_device import meta_device
with meta_device():
    x = torch.nn.Conv2d(3, 4, 3)(torch.empty(1, 3, 9, 8))
    torch.cat([x, x + x], 1)
    assert "__file__" not in dir(sys.modules["sympy"])
assert "sympy" not in sys.modules
from torch.fx.experimental.symbolic_shapes import ShapeEnv, guard_or_false
size = ShapeEnv().create_unbacked_symint()
with meta_device():
    torch.nn.Conv2d(3, 4, 3)(torch.empty(1, 3, 9, 8))
assert not guard_or_false(size == 4)
import sympy
assert sympy.Symbol("x") in [sympy.Symbol("x")]
"""


def test_sympy_is_not_loaded_and_is_itself_afterwards():
    run = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
