"""A frozen sparse encoder in half precision: on tensor cores, with its batch norms folded.

In single precision spconv computes without tensor cores. spconv has no bfloat16, so this is float16. The
first convolution reads metres and stays in single precision: float16 resolves 54 m to 3 cm.
"""

import copy
import importlib
from collections.abc import Hashable
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def encode(encoder: Any, features: Tensor, coords: Tensor, batch: int) -> Tensor:
    """Run a sparse encoder; in half precision if ``runs_half`` says so, and on a CPU in one thread.

    Args:
        encoder: what ``build_sparse_encoder`` made.
        features: (N, C) float32 of the voxels, N > 1.
        coords: (N, 4): sample, level, row, column.
        batch: number of samples.

    Returns:
        The BEV map (batch, C', h, w), in float16 or as the encoder computes.
    """
    if not features.is_cuda:
        # The build of spconv 2.3.8 for CPUs adds rows up through a pointer that its threads share
        # (``scatter_add``): a voxel now and then gets the sum of another one. Its OpenMP is not torch's.
        with threadpool_limits(1, user_api="openmp"):
            return encoder(features, coords, batch)
    if not runs_half(encoder):
        return encoder(features, coords, batch)
    key = _state(encoder)
    if getattr(encoder, "half_copy", None) is None or encoder.half_copy.key != key:
        encoder.half_copy = HalfEncoder(encoder, key)  # no module: the checkpoint does not see it
    with torch.no_grad():
        return encoder.half_copy(features, coords, batch)


def runs_half(encoder: Any) -> bool:
    """Whether an encoder on a GPU runs in half precision.

    It does under autocast, if nothing in it learns, neither weights nor statistics. The config's
    ``half_sparse_encoder=False`` switches it off.
    """
    learns = any(p.requires_grad for p in encoder.parameters()) and torch.is_grad_enabled()
    counts = any(m.training for m in encoder.modules() if isinstance(m, _BatchNorm))
    return encoder.half_when_frozen and torch.is_autocast_enabled("cuda") and not (learns or counts)


def folded(weight: Tensor, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that does what a convolution and a batch norm after it do.

    Args:
        weight: (out, ...) of a convolution without a bias.
        norm: in evaluation mode, over the outputs.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = (variance + norm.eps).rsqrt() * norm.weight.double()
    bias = norm.bias.double() - mean * scale
    folded_weight = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
    return folded_weight.to(weight.dtype), bias.to(weight.dtype)


class HalfEncoder:
    """The folded convolutions of an encoder, and their order.

    Attributes:
        key: tells whether the encoder is still the one that was folded.
    """

    def __init__(self, encoder: Any, key: Hashable) -> None:
        self.key, self._shape = key, encoder.sparse_shape
        with torch.no_grad(), torch.inference_mode(False):
            conv, norm, _ = encoder.conv_input.children()
            self._first = _fold(conv, norm, relu=True, dtype=torch.float32)
            parts = [part for stage in encoder.encoder_layers.children() for part in stage.children()]
            self._parts = [_fold_part(part) for part in (*parts, encoder.conv_out)]

    def __call__(self, features: Tensor, coords: Tensor, batch: int) -> Tensor:
        """Encode; see ``encode``."""
        tensor = importlib.import_module("spconv.pytorch").SparseConvTensor
        with torch.autocast("cuda", enabled=False):
            x = self._first(tensor(features.float(), coords.int(), self._shape, batch))
            x = x.replace_feature(x.features.half())
            for first, second in self._parts:
                y = first(x)
                if second is not None:
                    y = second(y)
                    y = y.replace_feature(y.features.add_(x.features).relu_())
                x = y
            return x.dense().flatten(1, 2)


def _fold_part(part: Any) -> tuple[Any, Any]:
    """Fold a basic block, or a convolution with norm and ReLU (the second result is None then)."""
    if hasattr(part, "conv1"):
        return _fold(part.conv1, part.norm1, relu=True), _fold(part.conv2, part.norm2, relu=False)
    conv, norm, _ = part.children()
    return _fold(conv, norm, relu=True), None


def _fold(conv: Any, norm: _BatchNorm, relu: bool, dtype: torch.dtype = torch.float16) -> Any:
    """Return a copy of a sparse convolution with its batch norm, and with the ReLU if it has one."""
    made = copy.deepcopy(conv).eval()
    weight, bias = folded(conv.weight, norm)
    made.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    made.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    if relu:
        made.act_type = importlib.import_module("cumm.tensorview").gemm.Activation.ReLU
    return made


def _state(encoder: nn.Module) -> Hashable:
    """Return a key that changes when a weight or a statistic of the encoder does."""
    tensors = (*encoder.parameters(), *encoder.buffers())
    return tuple((t.data_ptr(), t._version) for t in tensors)
