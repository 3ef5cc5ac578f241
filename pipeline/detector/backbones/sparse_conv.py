"""Sparse convolutions of the LiDAR branch: mmdet3d's SparseEncoder, which needs spconv 2.

Without spconv, mmdet3d silently uses mmcv's compiled ops. Those keep weights in another layout, and mmcv-lite
does not have them, so the first forward pass would fail.
"""

import importlib
import importlib.util
from typing import Any

import torch
from mmdet3d.models.layers.spconv import IS_SPCONV2_AVAILABLE
from mmdet3d.registry import MODELS
from torch import Tensor, nn

KERNEL_DIMS = 5  # axes of the weight of a sparse 3-D convolution
TO_SPCONV2 = (4, 0, 1, 2, 3)  # (kz, ky, kx, in, out) of mmcv and spconv 1 -> (out, kz, ky, kx, in)


class SparseConvError(RuntimeError):
    """spconv is missing or does not import."""


def build_sparse_encoder(cfg: dict[str, Any], half: bool = True) -> nn.Module:
    """Build ``SparseEncoder``. The submanifold convolutions of a stage share one neighbour table.

    On torch's meta device it can be built without spconv, with the shapes of spconv.

    Args:
        cfg: ``dict(type='SparseEncoder', ...)`` of mmdet3d.
        half: whether it runs in half precision while nothing in it learns (``half_encoder.runs_half``).

    Raises:
        SparseConvError: spconv is not installed or does not import, and the device is not meta.
    """
    on_meta = torch.get_default_device().type == "meta"
    if not (IS_SPCONV2_AVAILABLE or on_meta):
        raise SparseConvError(_missing())
    encoder: Any = MODELS.build(cfg)
    encoder.half_when_frozen = half
    if IS_SPCONV2_AVAILABLE:
        importlib.import_module("spconv.pytorch.core").scatter_nd = scatter_nd  # type: ignore[attr-defined]
        share_tables(encoder)
    else:
        for module in encoder.modules():
            own = module._parameters.get("weight")
            if own is not None and own.ndim == KERNEL_DIMS:
                module.weight = nn.Parameter(to_spconv2(own.detach()))
    return encoder


def share_tables(encoder: nn.Module) -> None:
    """Let all submanifold convolutions between two down-samplings share one table of neighbours.

    They see the same voxels with the same kernel. mmdet3d's basic blocks set no key, so each of their 16
    convolutions would compute the neighbours again.
    """
    stages = [encoder.get_submodule("conv_input"), *encoder.get_submodule("encoder_layers").children()]
    for number, stage in enumerate(stages):
        for module in stage.modules():
            if getattr(module, "subm", False):
                # The input convolution sees the voxels of the first stage.
                module.indice_key = f"subm{max(number, 1)}"  # type: ignore[assignment]


def scatter_nd(indices: Tensor, updates: Tensor, shape: list[int]) -> Tensor:
    """Write rows into a tensor of zeros; replaces spconv's function of this name.

    spconv's uses a list as an index, which PyTorch deprecated and will read as one index tensor.

    Args:
        indices: (N, d) int64, all different.
        updates: (N, *shape[d:]).
        shape: shape of the result.
    """
    return updates.new_zeros(shape).index_put(tuple(indices.unbind(-1)), updates)


def to_spconv2(weight: Tensor) -> Tensor:
    """Permute a weight (kz, ky, kx, in, out) of mmcv or spconv 1 to spconv 2's (out, kz, ky, kx, in)."""
    return weight.permute(TO_SPCONV2).contiguous()


def _missing() -> str:
    """Return the message for a machine without a working spconv."""
    installed = importlib.util.find_spec("spconv") is not None
    state = "is installed but does not import" if installed else "is not installed"
    return (
        f"the SparseEncoder of this config needs spconv 2, which {state}; pip install 'biaswise[gpu]' on a "
        "machine with CUDA 12, or use a config with pillars (cmt_aqr_pillar_mini)"
    )
