"""A trained model made ready to detect fast: batch norms folded, weights cast once, CUDA graphs."""

from typing import Any

import torch
from mmcv.cnn import fuse_conv_bn
from torch import nn

from pipeline.detector.acceleration.cuda_graph import Graphs
from pipeline.detector.acceleration.memory_format import convolutions_channels_last
from pipeline.detector.acceleration.training_graph import TrainGraphs
from pipeline.detector.transformer.site_attention import PackedProjections

CONVOLUTIONS = ("img_backbone", "img_neck", "pts_branch", "pts_backbone", "pts_neck")
"""Parts of ``CmtDetector`` that autocast runs in half precision from end to end."""

LINEARS = ("pts_bbox_head.transformer", "pts_bbox_head.aqr")
"""Parts whose linear layers do; their norms and the task heads stay in single precision."""


def for_inference(model: Any, dtype: torch.dtype | None = None) -> Any:
    """Prepare a model for inference, in place; it can no longer be trained or saved as a checkpoint.

    Folding changes the last bits of the results. Casting changes nothing: autocast would cast the same
    weights to the same values in every call.

    Args:
        model: a ``CmtDetector``.
        dtype: of the autocast that it will run under; None if it will not.

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


def use_graphs(model: Any, graphs: bool = True) -> Any:
    """Let a model on a GPU detect through CUDA graphs from now on, or no longer; elsewhere nothing changes.

    The results keep their bits. The graphs hold memory (their intermediate results), and the weights must
    stay where they are: cast or move the model before.

    Args:
        model: a ``CmtDetector``.
        graphs: False: launch kernel by kernel.

    Returns:
        The model.
    """
    on = graphs and next(model.parameters()).is_cuda
    model.graphs = model.pts_bbox_head.graphs = Graphs() if on else None
    return model


def train_through_graphs(model: Any, graphs: bool = True) -> Any:
    """Let a model on a GPU train its head, and run a frozen image backbone, through CUDA graphs from now on.

    Losses and gradients are the same but for the order of sums, and dropout falls as it would with the padded
    denoising slots. The graphs hold memory. Parameters must stay the same objects where they are: move the
    model before.

    Args:
        model: a ``CmtDetector``.
        graphs: False: launch kernel by kernel, and give the graphs' memory back.

    Returns:
        The model; on a CPU as it was.
    """
    on = graphs and next(model.parameters()).is_cuda
    model.pts_bbox_head.train_graphs = TrainGraphs(model.pts_bbox_head) if on else None
    return model


def _part(model: nn.Module, name: str) -> nn.Module | None:
    """Return a submodule by its path, None where the model has none."""
    found: nn.Module | None = model
    for step in name.split("."):
        found = getattr(found, step, None)
    return found
