"""mmdet3d's encoder of pillars without training, in a third of its operations.

The encoder joins every point with its offsets from the pillar's mean and middle, multiplies by one matrix,
normalises, and takes the maximum over the points of a pillar. All but the maximum is linear. So what depends
on the pillar alone is added after the maximum, once a pillar:

    maximum over points of (A r) + c,  r = point minus the middle of its pillar

mmdet3d pads a pillar that is not full with points of zeros, and these take part in the maximum.
"""

from typing import Any

import torch
from mmdet3d.models.voxel_encoders import PillarFeatureNet
from torch import Tensor, nn

from pipeline.detector.backbones.voxelization import Voxels


def is_one_product(encoder: nn.Module) -> bool:
    """Say whether an encoder is one that ``encode`` computes: the default one of mmdet3d, with one layer."""
    if type(encoder) is not PillarFeatureNet:
        return False
    net: Any = encoder
    offsets = net._with_cluster_center and net._with_voxel_center and not net._with_distance
    return bool(
        offsets and not net.legacy and len(net.pfn_layers) == 1 and net.pfn_layers[0].mode == "max"
    ) and isinstance(net.pfn_layers[0].norm, nn.BatchNorm1d)


def encode(encoder: Any, pillars: Voxels) -> Tensor:
    """Return the features (N, C) of pillars, as the encoder gives them in evaluation, up to rounding.

    Args:
        encoder: a ``PillarFeatureNet`` for which ``is_one_product`` holds.
        pillars: N may be 0.
    """
    layer = encoder.pfn_layers[0]
    factor = layer.norm.weight / torch.sqrt(layer.norm.running_var + layer.norm.eps)
    shift = layer.norm.bias - layer.norm.running_mean * factor
    channels = pillars.points.shape[2]
    raw, from_mean, from_middle = (layer.linear.weight * factor[:, None]).split([channels, 3, 3], dim=1)
    of_point = raw.clone()
    of_point[:, :3] += from_mean + from_middle
    middle = _middles(encoder, pillars)
    count = pillars.counts[:, None]
    mean = pillars.points[..., :3].sum(dim=1) / count - middle
    slots = pillars.points.shape[1]
    filled = torch.arange(slots, device=count.device) < count
    # A copy of a pillar's first point in an empty slot does not change the maximum.
    relative = torch.where(filled[..., None], pillars.points, pillars.points[:, :1])
    relative[..., :3] -= middle[:, None]
    highest = (relative.flatten(0, 1) @ of_point.T).view(-1, slots, len(shift)).amax(dim=1)
    out = highest + (middle @ raw[:, :3].T - mean @ from_mean.T + shift)
    return torch.where(count < slots, torch.maximum(out, shift), out).relu()


def scatter(features: Tensor, pillars: Voxels, batch: int, shape: tuple[int, int]) -> Tensor:
    """Return a map (B, C, rows, columns), channels last, with the features (N, C) at their pillars."""
    sample, _, row, col = pillars.coords.unbind(1)
    rows, cols = shape
    canvas = features.new_zeros(batch * rows * cols, features.shape[1])
    canvas[(sample * rows + row) * cols + col] = features
    return canvas.view(batch, rows, cols, -1).permute(0, 3, 1, 2)


def _middles(encoder: Any, pillars: Voxels) -> Tensor:
    """Return the middle of every pillar in m, (N, 3): x, y, z."""
    cells = pillars.coords[:, 1:].flip(1).to(pillars.points.dtype)
    size = cells.new_tensor([encoder.vx, encoder.vy, encoder.vz])
    return cells * size + cells.new_tensor([encoder.x_offset, encoder.y_offset, encoder.z_offset])
