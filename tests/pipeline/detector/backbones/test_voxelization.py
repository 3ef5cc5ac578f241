"""Voxels against a loop over the points that does what the published hard voxeliser does."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.detector.backbones.voxelization import VoxelError, VoxelLayer, Voxels

SETTINGS: dict[str, Any] = {
    "voxel_size": [0.5, 0.5, 1.0],
    "point_cloud_range": [-4.0, -3.0, -2.0, 4.0, 3.0, 2.0],
    "max_num_points": 3,
    "max_voxels": (20, 1000),
    "num_point_features": 5,
    "sparse_shape": [5, 12, 14],  # two columns fewer than the range has
}


def by_hand(cloud: Tensor, layer: VoxelLayer, most: int) -> dict[tuple[int, ...], list[list[float]]]:
    """Voxelise point by point: the first ``most`` voxels, the first points of each."""
    found: dict[tuple[int, ...], list[list[float]]] = {}
    for point in cloud:
        place = ((point[:3] - layer.low) / layer.size).floor()
        cell = tuple(int(v) for v in place.flip(0)) if place.isfinite().all() else (-1,)
        outside = len(cell) < 3 or any(not 0 <= c < n for c, n in zip(cell, layer.shape, strict=True))
        if outside or not point.isfinite().all() or (cell not in found and len(found) == most):
            continue
        kept = found.setdefault(cell, [])
        if len(kept) < layer.max_num_points:
            kept.append(point.tolist())
    return found


def clouds(*sizes: int) -> list[Tensor]:
    spread = torch.tensor([10.0, 8.0, 6.0, 1.0, 1.0])
    return [torch.rand(n, 5) * spread - spread / 2 for n in sizes]


def as_dict(voxels: Voxels, sample: int) -> dict[tuple[int, ...], list[list[float]]]:
    rows = zip(voxels.coords.tolist(), voxels.counts.tolist(), voxels.points, strict=True)
    return {tuple(at[1:]): points[:n].tolist() for at, n, points in rows if at[0] == sample}


@pytest.mark.parametrize(("training", "most"), [(True, 20), (False, 1000)])
def test_voxels_are_those_of_a_loop_over_the_points(training: bool, most: int) -> None:
    layer = VoxelLayer(**SETTINGS).train(training)
    batch = clouds(900, 0, 7, 400)
    batch[3][5:9] = torch.tensor([float("nan"), float("inf"), 0.0, 0.0, 0.0])
    found = layer(batch)
    for b, cloud in enumerate(batch):
        assert as_dict(found, b) == by_hand(cloud, layer, most)
    assert found.coords.tolist() == sorted(found.coords.tolist())
    empty = torch.arange(3) >= found.counts[:, None]
    assert not found.points[empty].any()


def test_what_lies_beyond_the_sparse_shape_gets_no_voxel() -> None:
    layer = VoxelLayer(**SETTINGS)
    inside, beyond = [2.9, 0.0, 0.0, 0.0, 0.0], [3.1, 0.0, 0.0, 0.0, 0.0]  # 14 columns of 0.5 m end at 3 m
    assert layer([torch.tensor([inside, beyond])]).points[:, 0].tolist() == [
        [pytest.approx(v) for v in inside]
    ]


def test_the_full_sizes_are_those_of_the_configs() -> None:
    published = {**SETTINGS, "point_cloud_range": [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]}
    r50 = VoxelLayer(**{**published, "voxel_size": [0.1, 0.1, 0.2], "sparse_shape": [41, 1024, 1024]})
    vov = VoxelLayer(**{**published, "voxel_size": [0.075, 0.075, 0.2], "sparse_shape": [41, 1440, 1440]})
    assert (r50.shape, vov.shape) == ((40, 1024, 1024), (40, 1440, 1440))


def test_masked_points_make_one_voxel_and_no_points_none() -> None:
    layer = VoxelLayer(**SETTINGS)
    assert layer([torch.zeros(500, 5)]).counts.tolist() == [3]
    assert layer([torch.zeros(0, 5)]).points.shape == (0, 3, 5)


@pytest.mark.parametrize(
    "change",
    [{"voxel_size": [0.5, 0.0, 1.0]}, {"max_voxels": (0, 5)}, {"point_cloud_range": [1.0, 0, 0, 1, 1, 1]}],
)
def test_sizes_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(VoxelError, match="expected positive sizes and numbers and minima below maxima"):
        VoxelLayer(**{**SETTINGS, **change})


def test_points_with_another_number_of_columns_are_refused() -> None:
    with pytest.raises(VoxelError, match=r"points have 4 columns, pts_voxel_layer.num_point_features is 5"):
        VoxelLayer(**SETTINGS)([torch.zeros(3, 4)])
