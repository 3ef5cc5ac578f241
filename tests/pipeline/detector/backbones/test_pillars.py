"""Pillars against a loop, and the LiDAR branch with and without points."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.detector.backbones import pillars
from pipeline.detector.backbones.pillars import PillarBranch, SizeError, pillars_of
from pipeline.detector.build import load_config

RANGE = torch.tensor([-8.0, -4.0, -5.0, 8.0, 4.0, 3.0])
SHAPE = (4, 8)  # pillars of 2 m


def by_hand(clouds: list[Tensor], max_points: int) -> dict[tuple[int, int, int], list[list[float]]]:
    """Sort points into (sample, row, column) one by one."""
    found: dict[tuple[int, int, int], list[list[float]]] = {}
    for sample, cloud in enumerate(clouds):
        for point in cloud.tolist():
            x, y, z = point[:3]
            if -8 <= x < 8 and -4 <= y < 4 and -5 <= z < 3:
                cell = found.setdefault((sample, int((y + 4) // 2), int((x + 8) // 2)), [])
                if len(cell) < max_points:
                    cell.append(point)
    return found


def branch_config() -> dict[str, Any]:
    cfg = load_config("experiments/configs/cmt_aqr_pillar_mini.py").model.pts_branch
    cfg.pop("type")
    return dict(cfg)


@pytest.fixture(params=["counted", "sorted"])
def grouping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Group points by counting, as for a small grid on a CPU, and by sorting, as for any other."""
    if request.param == "sorted":
        monkeypatch.setattr(pillars, "MOST_COUNTED", 0)


@pytest.mark.usefixtures("grouping")
def test_pillars_are_those_of_a_loop_over_the_points() -> None:
    clouds = [
        torch.rand(n, 5) * torch.tensor([20, 10, 10, 1, 1]) - torch.tensor([10, 5, 6, 0, 0])
        for n in (300, 0, 70)
    ]
    found = pillars_of(clouds, RANGE, SHAPE, max_points=3)
    expected = by_hand(clouds, 3)
    cells = [(b, row, col) for b, _, row, col in found.coords.tolist()]
    assert cells == sorted(expected)
    for cell, points, count in zip(cells, found.points, found.counts.tolist(), strict=True):
        assert points[:count].tolist() == expected[cell]
        assert not points[count:].any()


@pytest.mark.usefixtures("grouping")
def test_minima_are_inside_and_maxima_outside() -> None:
    corners = torch.tensor([[-8.0, -4, -5, 0, 0], [8, 0, 0, 0, 0], [0, 4, 0, 0, 0], [0, 0, 3, 0, 0]])
    found = pillars_of([corners], RANGE, SHAPE, max_points=2)
    assert found.coords.tolist() == [[0, 0, 0, 0]]


@pytest.mark.usefixtures("grouping")
def test_a_point_just_below_the_maximum_stays_in_the_last_cell() -> None:
    edge = torch.nextafter(torch.tensor(8.0), torch.tensor(0.0))
    found = pillars_of([torch.tensor([[float(edge), 3.9999998, 0, 0, 0]])], RANGE, (3, 7), max_points=1)
    assert found.coords.tolist() == [[0, 0, 2, 6]]


@pytest.mark.usefixtures("grouping")
def test_points_that_are_not_finite_are_left_out() -> None:
    cloud = torch.tensor([[0.0, 0, 0, float("nan"), 0], [float("inf"), 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert pillars_of([cloud], RANGE, SHAPE, max_points=4).counts.tolist() == [1]


def test_an_infinite_sum_of_finite_points_drops_none() -> None:
    cloud = torch.tensor([[0.0, 0, 0, 3e38, 3e38], [1, 1, 1, 3e38, 3e38]])
    assert pillars_of([cloud], RANGE, SHAPE, max_points=4).counts.tolist() == [2]


def test_a_frozen_branch_gives_the_map_of_a_trained_one() -> None:
    torch.manual_seed(0)
    branch = PillarBranch(**branch_config()).double().eval()
    for norm in (m for m in branch.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)):
        norm.running_mean, norm.running_var = torch.randn_like(norm.bias), torch.rand_like(norm.bias) + 0.5
    clouds = [torch.rand(n, 5).double() * 60 - 30 for n in (3000, 0, 300)]
    expected = branch(clouds)
    assert expected.requires_grad
    found = branch.requires_grad_(False)(clouds)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("training", [False, True])
def test_an_empty_cloud_gives_a_finite_map_and_gradients(training: bool) -> None:
    branch = PillarBranch(**branch_config()).train(training)
    out = branch([torch.zeros(0, 5), torch.zeros(0, 5)])
    assert out.isfinite().all()
    out.sum().backward()
    assert all(p.grad is not None for p in branch.parameters()), "all workers must have the same ones"


def test_points_of_other_columns_are_refused() -> None:
    branch = PillarBranch(**branch_config())
    with pytest.raises(SizeError, match=r"points have 4 columns, pts_branch.voxel_encoder.in_channels is 5"):
        branch([torch.zeros(3, 5), torch.zeros(3, 4)])


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    branch = PillarBranch(**branch_config()).eval()
    clouds = [torch.rand(n, 5) * 60 - 30 for n in (500, 0, 300)]
    with torch.no_grad():
        together = branch(clouds)
        for cloud, expected in zip(clouds, together, strict=True):
            # 1e-5: a batch of another size sums in another order, on values near 1
            torch.testing.assert_close(branch([cloud])[0], expected, rtol=0, atol=1e-5)


def test_rows_run_along_y() -> None:
    branch = PillarBranch(**branch_config()).eval()
    with torch.no_grad():
        empty = branch([torch.zeros(0, 5)])
        changed = (branch([torch.tensor([[0.0, 50.0, 0, 1, 0]])]) - empty)[0].abs().amax(dim=0)
    row, col = divmod(int(changed.argmax()), changed.shape[1])
    assert row > 0.8 * changed.shape[0]
    assert 0.4 * changed.shape[1] < col < 0.6 * changed.shape[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid_shape": (0, 4)}, "at least 1 x 1"),
        ({"point_cloud_range": [5.0, 0, 0, 1, 1, 1]}, "minima below maxima"),
        ({"middle_encoder": {"type": "PointPillarsScatter", "output_shape": [4, 4]}}, "output_shape follow"),
    ],
)
def test_contradicting_sizes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SizeError, match=message):
        PillarBranch(**{**branch_config(), **change})
