"""Task heads: box codes and class logits from the states of the decoder, with weights per layer.

Parameter names and shapes are those of CMT's grouped 1-D convolutions over the queries. A batched matrix
product computes the same. With a kernel of 3 (CMT's LiDAR-only head) a query is read with its two neighbours.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pipeline.detector.head.box_coder import HEADS

NORM_EPS = 1e-6  # of the group layer norm in CMT's heads

LAST_STD = 1e-3
"""Of the initial weights of an output's last layer. Every query starts with the same class scores and the
same box, within 0.2 m of its reference point. With CMT's own weights, about 0.4, what a query reads makes
noise of its outputs, and training begins by reading less. Published weights replace both."""

TYPICAL_BOX = {"height": (math.log(3.0),), "dim": (math.log(1.5), -0.8, math.log(1.6))}
"""Output -> its initial values: length, width, z of the centre and height in m of an ordinary box."""


class Tf32Product(torch.autograd.Function):
    """``x @ weight.mT`` whose backward pass uses TF32 too, whatever the switch says when it runs.

    TF32 rounds the operands to 11 bits and sums in single precision, on tensor cores.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply (n, N, inputs) and (n, outputs, inputs)."""
        ctx.save_for_backward(x, weight)
        with tf32_products():
            return torch.bmm(x, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of both."""
        x, weight = ctx.saved_tensors
        with tf32_products():
            return torch.bmm(grad, weight), torch.bmm(grad.mT, x)


@contextmanager
def tf32_products(wanted: bool = True) -> Iterator[None]:
    """Let float32 products on a GPU use TF32, if ``wanted``; nothing else changes."""
    switch = torch.backends.cuda.matmul
    before = switch.allow_tf32
    switch.allow_tf32 = before or wanted
    try:
        yield
    finally:
        switch.allow_tf32 = before


class GroupedLinear(nn.Module):
    """One linear layer per decoder layer, with the parameters of the convolution in the checkpoints.

    Args:
        groups: number of decoder layers.
        inputs, outputs: channels.
        bias: whether it adds a bias.
        kernel: number of neighbouring queries that it reads, odd.
    """

    def __init__(self, groups: int, inputs: int, outputs: int, bias: bool, kernel: int = 1):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(groups * outputs, inputs, kernel))
        self.bias = nn.Parameter(torch.zeros(groups * outputs)) if bias else None
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")  # as CMT initialises Conv1d

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, B, Q, inputs) to (n, B, Q, outputs) with the weights of the last n decoder layers."""
        kernel = self.weight.shape[-1]
        rows = (x if kernel == 1 else _with_neighbours(x, kernel)).flatten(1, 2)
        return self._product(rows).view(*x.shape[:3], -1)

    def _product(self, x: Tensor) -> Tensor:
        """Map (n, N, inputs * kernel) to (n, N, outputs)."""
        weight = self.weight.view(self.groups, -1, x.shape[-1])[-len(x) :]
        bias = None if self.bias is None else self.bias.view(self.groups, 1, -1)[-len(x) :]
        if torch.backends.cuda.matmul.allow_tf32:
            product: Tensor = Tf32Product.apply(x, weight)  # type: ignore[no-untyped-call]
            return product if bias is None else product + bias
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias, x, weight.mT)


def _with_neighbours(x: Tensor, kernel: int) -> Tensor:
    """Return (n, B, Q, C * kernel): the channels of each query and its neighbours, ordered as a weight's."""
    side = kernel // 2
    return F.pad(x, (0, 0, side, side)).unfold(2, kernel, 1).flatten(-2)


class GroupedNorm(nn.Module):
    """One layer norm per decoder layer."""

    def __init__(self, groups: int, channels: int):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(groups * channels))
        self.bias = nn.Parameter(torch.zeros(groups * channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (n, B, Q, channels) with the weights of the last n decoder layers."""
        weight, bias = (p.view(self.groups, 1, 1, -1)[-len(x) :] for p in (self.weight, self.bias))
        return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * weight + bias


class SeparateTaskHead(nn.Module):
    """One small network per output and decoder layer."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_layers: int,
        common_heads: Mapping[str, Sequence[int]],
        head_conv: int = 64,
        final_kernel: int = 1,
        init_bias: float = -2.19,
    ):
        """Make the networks.

        Args:
            in_channels: C.
            num_classes: number of classes.
            num_layers: L.
            common_heads: name -> (channels, number of linear layers), with the names and channels of
                ``box_coder.HEADS``.
            head_conv: number of hidden channels.
            final_kernel: of the convolutions across queries, odd; 3 in CMT's LiDAR-only model, else 1.
            init_bias: initial bias of the logits; with -2.19 every class starts at probability 0.1.

        Raises:
            ValueError: other heads than ``box_coder.HEADS``, or another kernel.
        """
        super().__init__()
        channels = {name: outputs for name, (outputs, _) in common_heads.items()}
        if channels != HEADS:
            raise ValueError(f"common_heads: a box code needs the channels {HEADS}, got {channels}")
        if final_kernel < 1 or final_kernel % 2 == 0:
            raise ValueError(f"separate_head.final_kernel: expected an odd number, got {final_kernel}")
        for name, (outputs, depth) in {**common_heads, "cls_logits": (num_classes, 2)}.items():
            parts: list[nn.Module] = []
            inputs = in_channels
            for _ in range(depth - 1):
                parts += [GroupedLinear(num_layers, inputs, head_conv, bias=False, kernel=final_kernel)]
                parts += [GroupedNorm(num_layers, head_conv), nn.ReLU()]
                inputs = head_conv
            last = GroupedLinear(num_layers, inputs, outputs, bias=True, kernel=final_kernel)
            nn.init.normal_(last.weight, std=LAST_STD)
            start = TYPICAL_BOX | {"cls_logits": (init_bias,) * num_classes}
            last.bias = nn.Parameter(torch.tensor(start.get(name, (0.0,) * outputs)).repeat(num_layers))
            self.add_module(name, nn.Sequential(*parts, last))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Compute box codes and logits from the states of the last n decoder layers.

        Args:
            states: (n, B, Q, C).

        Returns:
            Raw codes (n, B, Q, 10), before the reference point is added, and logits (n, B, Q, classes).
        """
        outputs = [self.get_submodule(name)(states) for name in (*HEADS, "cls_logits")]
        return torch.cat(outputs[:-1], dim=-1), outputs[-1]
