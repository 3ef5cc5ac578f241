"""Sparse convolutions of the LiDAR branch: mmdet3d's SparseEncoder, on spconv 2 or not at all.

Without spconv mmdet3d takes mmcv's compiled ops without a word. Those keep weights in another layout and do
not exist in mmcv-lite, so that the first forward pass would fail.
"""

import importlib
import importlib.util
from typing import Any

import torch
from mmdet3d.models.layers.spconv import IS_SPCONV2_AVAILABLE
from mmdet3d.registry import MODELS
from torch import Tensor, nn

KERNEL_DIMS = 5  # of the weight of a sparse convolution in three dimensions
TO_SPCONV2 = (4, 0, 1, 2, 3)  # (kz, ky, kx, in, out), mmcv's and spconv 1's layout, to (out, kz, ky, kx, in)


class SparseConvError(RuntimeError):
    """spconv is missing, or was asked for on a machine that it does not know."""


def build_sparse_encoder(cfg: dict[str, Any]) -> nn.Module:
    """Build ``SparseEncoder``; its submanifold convolutions of one stage share their neighbour tables.

    On torch's meta device it builds without spconv too, with the shapes that spconv would have.

    Args:
        cfg: ``dict(type='SparseEncoder', ...)`` of mmdet3d.

    Raises:
        SparseConvError: spconv is not installed, or does not import.
    """
    on_meta = torch.get_default_device().type == "meta"
    if not (IS_SPCONV2_AVAILABLE or on_meta):
        raise SparseConvError(_missing())
    encoder: nn.Module = MODELS.build(cfg)
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
    """Let all submanifold convolutions between two down-samplings use one table of neighbours.

    They look at the same voxels with the same kernel; mmdet3d's basic blocks name no key, so that each of
    their 16 convolutions would find its neighbours anew.
    """
    stages = [encoder.get_submodule("conv_input"), *encoder.get_submodule("encoder_layers").children()]
    for number, stage in enumerate(stages):
        for module in stage.modules():
            if getattr(module, "subm", False):
                # The input convolution looks at the voxels of the first stage.
                module.indice_key = f"subm{max(number, 1)}"  # type: ignore[assignment]


def scatter_nd(indices: Tensor, updates: Tensor, shape: list[int]) -> Tensor:
    """Write rows into a tensor of zeros: spconv's function of this name, without its list as an index.

    PyTorch deprecated that, and will take the list for one tensor of indices.

    Args:
        indices: (N, d) int64, no two alike.
        updates: (N, *shape[d:]).
        shape: of the result.
    """
    return updates.new_zeros(shape).index_put(tuple(indices.unbind(-1)), updates)


def to_spconv2(weight: Tensor) -> Tensor:
    """Turn a weight (kz, ky, kx, in, out) of mmcv or spconv 1 into spconv 2's (out, kz, ky, kx, in)."""
    return weight.permute(TO_SPCONV2).contiguous()


def _missing() -> str:
    """Say what is wrong and what to do."""
    found = importlib.util.find_spec("spconv") is not None
    what = "is installed but does not import" if found else "is not installed"
    return (
        f"the SparseEncoder of this config needs spconv 2, which {what}; pip install 'biaswise[gpu]' on a "
        "machine with CUDA 12, or use a config with pillars (cmt_aqr_pillar_mini)"
    )
