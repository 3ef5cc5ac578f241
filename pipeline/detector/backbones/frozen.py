"""Parts of a detector that do not train, on a CPU: folded batch norms, channels-last maps, no autograd.

oneDNN's convolutions and PyTorch's pooling take about half the time on channels-last maps. A folded batch
norm is part of the convolution before it. Both change the last bits of a result.
"""

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from mmcv.cnn import fuse_conv_bn
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pipeline.detector.acceleration.memory_format import convolutions_channels_last


class _Source(NamedTuple):
    """A tensor as it was when a copy was made of it."""

    tensor: Tensor
    address: int
    version: int

    @property
    def unchanged(self) -> bool:
        """Whether the tensor still holds the same values at the same place."""
        return self.tensor.data_ptr() == self.address and self.tensor._version == self.version


class _Folded(NamedTuple):
    """A folded copy of a module, and the tensors that it was made from."""

    module: nn.Module
    sources: list[_Source]


_COPIES: WeakKeyDictionary[nn.Module, _Folded] = WeakKeyDictionary()


def is_frozen(part: nn.Module) -> bool:
    """Say whether a module computes the same function in this step as in evaluation, without gradients.

    That is so if nothing in it takes a gradient now, and no batch norm, dropout or
    drop path in it is in training mode.
    """
    trains = torch.is_grad_enabled() and any(p.requires_grad for p in part.parameters())
    draws = (_BatchNorm, _DropoutNd, DropPath)
    return not trains and not any(m.training for m in part.modules() if isinstance(m, draws))


def run_part(part: nn.Module, given: Any) -> Any:
    """Run a part of a detector; a frozen part on a CPU runs as a folded copy without autograd.

    The hooks of the part run as in any other call.

    Args:
        part: a backbone or a neck.
        given: its maps (N, C, H, W), one tensor or a sequence of them.

    Returns:
        What the part returns; the strides of its maps may differ.
    """
    maps: Sequence[Tensor] = [given] if isinstance(given, Tensor) else given
    on_cpu = all(x.device.type == "cpu" for x in maps)
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in maps)
    if not on_cpu or wanted or not is_frozen(part):
        return part(given)
    with torch.no_grad():
        last = [x.contiguous(memory_format=torch.channels_last) for x in maps]
        return _call_as(part, folded(part), last[0] if isinstance(given, Tensor) else last)


def folded(part: nn.Module) -> nn.Module:
    """Return the copy of a part with folded batch norms, made anew if the part's tensors have changed."""
    tensors = list(chain(part.parameters(), part.buffers()))
    known = _COPIES.get(part)
    if known is not None and len(known.sources) == len(tensors):
        pairs = zip(known.sources, tensors, strict=True)
        if all(source.tensor is tensor and source.unchanged for source, tensor in pairs):
            return known.module
    with torch.inference_mode(False), torch.no_grad():  # a training step may use the copy too
        module = copy.deepcopy(part)
        module.eval()  # by itself, because mmdet's backbones return None here
        module = convolutions_channels_last(fuse_conv_bn(module).requires_grad_(False))
    sources = [_Source(tensor, tensor.data_ptr(), tensor._version) for tensor in tensors]
    _COPIES[part] = _Folded(module, sources)
    return module


def _call_as(part: nn.Module, other: nn.Module, given: Any) -> Any:
    """Call a module with the ``forward`` of another, so that the hooks of the first run."""
    part.__dict__["forward"] = other.forward
    try:
        return part(given)
    finally:
        del part.__dict__["forward"]
