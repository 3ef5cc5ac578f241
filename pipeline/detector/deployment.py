"""Preparation of a trained model for fast inference: folded batch norms, weights cast once, CUDA graphs."""

from typing import Any

import torch
from mmcv.cnn import fuse_conv_bn
from torch import nn

from pipeline.detector.acceleration.captured_passes import Recorders
from pipeline.detector.acceleration.cuda_graph import MOST, Graphs
from pipeline.detector.acceleration.memory_format import convolutions_channels_last
from pipeline.detector.acceleration.training_graph import MOST as MOST_IN_TRAINING
from pipeline.detector.acceleration.training_graph import TrainGraphs
from pipeline.detector.transformer.site_attention import PackedProjections

CONVOLUTIONS = ("img_backbone", "img_neck", "pts_branch", "pts_backbone", "pts_neck")
"""Parts of ``CmtDetector`` that autocast runs in half precision as a whole."""

LINEARS = ("pts_bbox_head.transformer", "pts_bbox_head.aqr")
"""Parts whose linear layers autocast runs in half precision; their norms stay in single precision."""


def for_inference(model: Any, dtype: torch.dtype | None = None) -> Any:
    """Prepare a model for inference, in place. It can no longer be trained or saved as a checkpoint.

    Folding batch norms changes the last bits of the results. Casting weights changes nothing, because
    autocast would cast them to the same values in every call.

    Args:
        model: a ``CmtDetector``.
        dtype: dtype of the autocast under which it will run; None: no autocast.

    Returns:
        The model, in evaluation mode and without gradients.
    """
    fuse_conv_bn(model.eval())
    model.requires_grad_(False)
    for name in (*CONVOLUTIONS, *LINEARS):
        part = _part(model, name)
        if part is None:
            continue
        for module in part.modules():
            if dtype is not None and isinstance(module, nn.Conv2d | nn.Linear | PackedProjections):
                module.to(dtype)
    return convolutions_channels_last(model)


def use_graphs(model: Any, graphs: bool = True, most: int = MOST) -> Any:
    """Switch detection through CUDA graphs on or off; a model on a CPU does not change.

    The results have the same bits. The graphs hold memory for their intermediate results. The weights must
    stay in place in memory, so cast or move the model before.

    Args:
        model: a ``CmtDetector``.
        graphs: False: launch kernel by kernel.
        most: see ``Graphs``.

    Returns:
        The model.
    """
    on = graphs and next(model.parameters()).is_cuda
    model.graphs = model.pts_bbox_head.graphs = Graphs(most) if on else None
    return model


def train_through_graphs(
    model: Any, graphs: bool = True, most: int = MOST_IN_TRAINING, recorders: Recorders | None = None
) -> Any:
    """Switch training through CUDA graphs on or off: for the head with its losses, and for frozen backbones.

    Losses and gradients are the same up to the order of sums. Dropout draws for the padding slots too. The
    graphs hold memory. Parameters must stay the same objects at the same place, so move the model before.

    Args:
        model: a ``CmtDetector``.
        graphs: False: launch kernel by kernel, and free the graphs' memory.
        most: see ``TrainGraphs``.
        recorders: see ``TrainGraphs``.

    Returns:
        The model; a model on a CPU does not change.
    """
    on, head = graphs and next(model.parameters()).is_cuda, model.pts_bbox_head
    head.train_graphs = TrainGraphs(head, most, recorders=recorders) if on else None
    # The LiDAR branch runs beside the image branch, so their captures cannot share buffers.
    model.lidar_graphs = TrainGraphs(model, lane="lidar", recorders=recorders) if on else None
    return model


def held_by_training_graphs(model: Any) -> int:
    """Return the memory in bytes that graphs of a training hold and the allocator does not count."""
    graphs = (model.pts_bbox_head.train_graphs, model.lidar_graphs)
    return sum(one.held_bytes for one in graphs if one is not None)


def _part(model: nn.Module, name: str) -> nn.Module | None:
    """Return the submodule at a path; None if there is none."""
    part: nn.Module | None = model
    for step in name.split("."):
        part = getattr(part, step, None)
    return part
