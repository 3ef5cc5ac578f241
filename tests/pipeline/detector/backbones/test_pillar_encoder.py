"""The encoder of pillars as one product, against mmdet3d's."""

from typing import Any

import pytest
import torch
from mmdet3d.models.middle_encoders import PointPillarsScatter
from mmdet3d.models.voxel_encoders import PillarFeatureNet

from pipeline.detector.backbones.pillar_encoder import encode, is_one_product, scatter
from pipeline.detector.backbones.voxelization import Voxels

SETTINGS: dict[str, Any] = {
    "in_channels": 5,
    "feat_channels": [8],
    "voxel_size": [2.0, 1.0, 8.0],
    "point_cloud_range": [-8.0, -4.0, -5.0, 8.0, 4.0, 3.0],
    "legacy": False,
}
ROWS, COLS = 8, 8


def encoder() -> Any:
    """Make an encoder in double precision, whose batch norm has seen something."""
    torch.manual_seed(0)
    made = PillarFeatureNet(**SETTINGS).double().eval()
    norm = made.pfn_layers[0].norm
    for values in (norm.running_mean, norm.weight, norm.bias):
        torch.nn.init.normal_(values)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return made.requires_grad_(False)


def some_pillars(number: int, slots: int = 4) -> Voxels:
    """Draw pillars with 1 to all slots filled, padded with zeros."""
    rng = torch.Generator().manual_seed(1)
    counts = torch.arange(number) % slots + 1
    cells = torch.randperm(2 * ROWS * COLS, generator=rng)[:number].sort().values
    coords = torch.stack(
        [cells // (ROWS * COLS), torch.zeros_like(cells), cells // COLS % ROWS, cells % COLS], dim=1
    )
    points = torch.rand(number, slots, 5, generator=rng).double() * 8 - 4
    filled = torch.arange(slots) < counts[:, None]
    return Voxels(torch.where(filled[..., None], points, 0), counts, coords)


@pytest.mark.parametrize("number", [0, 1, 60])
def test_features_are_those_of_mmdet3d(number: int) -> None:
    net, pillars = encoder(), some_pillars(number)
    expected = net(pillars.points.clone(), pillars.counts, pillars.coords) if number else torch.zeros(0, 8)
    torch.testing.assert_close(encode(net, pillars), expected.double().view(number, 8))


@pytest.mark.parametrize(
    "other",
    [{"legacy": True}, {"with_distance": True}, {"with_voxel_center": False}, {"feat_channels": [8, 8]}],
    ids=str,
)
def test_other_encoders_are_left_to_mmdet3d(other: dict[str, Any]) -> None:
    assert is_one_product(PillarFeatureNet(**SETTINGS))
    assert not is_one_product(PillarFeatureNet(**{**SETTINGS, **other}))


def test_the_map_is_that_of_mmdet3d() -> None:
    pillars = some_pillars(60)
    features = torch.randn(60, 8).double()
    expected = PointPillarsScatter(8, [ROWS, COLS])(features, pillars.coords, 2)
    assert torch.equal(scatter(features, pillars, 2, (ROWS, COLS)), expected)
