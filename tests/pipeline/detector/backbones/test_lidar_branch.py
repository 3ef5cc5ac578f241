"""The LiDAR branch, whole and in stages."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.detector.backbones.lidar_branch import LidarBranch
from pipeline.detector.backbones.voxelization import Voxels


class Voxel(nn.Module):
    def forward(self, clouds: list[Tensor]) -> Voxels:
        coords = torch.tensor([[b, 0, 0, i] for b, cloud in enumerate(clouds) for i in range(len(cloud))])
        counts = torch.ones(len(coords), dtype=torch.long)
        return Voxels(torch.cat(clouds)[:, None], counts, coords)


class Mean(nn.Module):
    def forward(self, points: Tensor, _counts: Tensor, _coords: Tensor) -> Tensor:
        return points.mean(dim=1)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, features: Tensor, coords: Tensor, batch: int) -> Tensor:
        canvas = features.new_zeros(batch, 1, 8, 3)
        at = (coords[:, 0], coords[:, 2], coords[:, 3])
        return canvas.index_put(at, self.linear(features)).permute(0, 3, 1, 2)


class Many(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Any) -> tuple[Tensor, ...]:
        x = x if isinstance(x, Tensor) else x[0]
        return tuple(layer(x) for layer in self.layers)


class Branch(LidarBranch):
    def __init__(self) -> None:
        super().__init__()
        self.pts_branch = self.graphs = None
        self.pts_voxel_layer, self.pts_voxel_encoder, self.pts_middle_encoder = Voxel(), Mean(), Encoder()
        self.pts_backbone = Many(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1))
        self.pts_neck = Many(nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_a_branch_that_is_cut_anywhere_gives_what_the_whole_gives(stages: int) -> None:
    branch, points = Branch(), [torch.randn(4, 5), torch.randn(7, 5)]
    before = branch.points_before(points, stages)
    torch.testing.assert_close(
        branch.points_after(before, stages), branch.point_features(points), rtol=0, atol=0
    )
