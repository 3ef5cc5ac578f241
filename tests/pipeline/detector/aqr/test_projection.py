"""Projection of queries and the local mask against published numbers; our mends are the only difference."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from operators.grid import TokenGrid
from operators.window_bias import LocalMask
from pipeline.detector.aqr.projection import ProjectedQueries

PARITY = Path(__file__).parents[5] / "shared/data/parity/golden_a_mome_lam.safetensors"
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason=f"parity numbers are not at {PARITY}")
RANGE = torch.tensor([-54.0, -54.0, -5.0, 54.0, 54.0, 3.0])
BEV_KEYS = 180 * 180


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with safe_open(PARITY, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        names = json.loads(file.metadata()["categories"])
    tensors["bev_defect"] = torch.zeros_like(tensors["defect_no_camera"])
    for defect in ("corner_exact_x1_defect", "corner_exact_x1y1_defect", "outside_range_x_defect"):
        tensors["bev_defect"] |= tensors["category"] == names.index(defect)
    # Outside in y the published window is cut at the border of the map. Ours has no window outside in x or y
    # (a learned point is clamped into the range before it gets here, so that this is a matter of definition).
    y_outside = [names.index("corner_exact_y1"), names.index("outside_range_y")]
    tensors["y_outside"] = torch.isin(tensors["category"], torch.tensor(y_outside))
    return tensors


def project(golden: dict[str, Tensor]) -> ProjectedQueries:
    grid = TokenGrid.bev_and_cameras((180, 180), (6, 40, 100))
    return ProjectedQueries.of(golden["ref_points"], golden["lidar2img"], RANGE, (640, 1600), grid)


@needs_parity
def test_camera_cells_are_those_of_the_first_view_that_sees_the_point(golden: dict[str, Tensor]) -> None:
    found = project(golden)
    view, row, col = golden["cam_view_row_col"].unbind(-1)
    seen = ~golden["defect_no_camera"]
    assert torch.equal(found.visible[..., 1:].any(dim=-1), seen)
    assert (found.visible[..., 1:].sum(dim=-1) <= 1).all()
    assert torch.equal(found.visible[..., 1:].float().argmax(dim=-1)[seen], view[seen])
    own = found.cells[..., 1:, :].sum(dim=-2)
    assert torch.equal(own[seen], torch.stack([row, col], dim=-1)[seen])


@needs_parity
def test_bev_cells_are_published_where_the_point_is_in_range(golden: dict[str, Tensor]) -> None:
    found = project(golden)
    inside = found.visible[..., 0]
    row, col = found.cells[..., 0, :].unbind(-1)
    assert torch.equal((row * 180 + col)[inside], golden["bev_index"][inside])
    assert torch.equal(~inside, golden["bev_defect"] | golden["y_outside"])


@needs_parity
def test_the_mask_differs_from_the_published_one_on_the_flagged_queries_alone(
    golden: dict[str, Tensor],
) -> None:
    found = project(golden)
    dense = LocalMask(found.grid, found.windows((5, 15))).dense()[:, 0] == 0
    published = torch.zeros_like(dense).flatten(0, 1)
    offsets, flat = golden["unmasked_offsets"].tolist(), golden["unmasked_flat"].long()
    for query, (first, last) in enumerate(pairwise(offsets)):
        published[query, flat[first:last]] = True
    differs = dense != published.view_as(dense)
    assert torch.equal(differs[..., :BEV_KEYS].any(dim=-1), golden["bev_defect"] | golden["y_outside"])
    assert torch.equal(differs[..., BEV_KEYS:].any(dim=-1), golden["defect_no_camera"])
    assert int(golden["bev_defect"].sum()) == 8
    assert int(golden["defect_no_camera"].sum()) == 14
    assert not dense[..., BEV_KEYS:][golden["defect_no_camera"]].any()
    assert not dense[..., :BEV_KEYS][golden["bev_defect"]].any()


def test_a_point_behind_the_only_camera_has_no_camera_cell() -> None:
    """Looks along +y, 100 px focal length: (0, 10, 0) is ahead, (0, -10, 0) mirrors onto the same pixel."""
    lidar2img = torch.tensor([[100.0, 50, 0, 0], [0, 50, -100, 0], [0, 1, 0, 0], [0, 0, 0, 1]]).expand(
        1, 1, 4, 4
    )
    grid = TokenGrid.bev_and_cameras((4, 4), (1, 5, 5))
    metres = torch.tensor([[[0.0, 10, 0], [0, -10, 0]]])
    points = (metres - RANGE[:3]) / (RANGE[3:] - RANGE[:3])
    found = ProjectedQueries.of(points, lidar2img, RANGE, (100, 100), grid)
    assert found.visible[0, :, 1].tolist() == [True, False]
    assert found.cells[0, 0].tolist() == [[2, 2], [2, 2]]


def test_bev_rows_run_along_y_and_columns_along_x() -> None:
    grid = TokenGrid.bev_and_cameras((4, 8), (1, 5, 5))
    found = ProjectedQueries.of(
        torch.tensor([[[0.9, 0.3, 0.5]]]), torch.eye(4).expand(1, 1, 4, 4), RANGE, (100, 100), grid
    )
    assert found.cells[0, 0, 0].tolist() == [1, 7]


def test_of_two_cameras_that_see_a_point_the_first_gets_the_window() -> None:
    camera = torch.tensor([[100.0, 50, 0, 0], [0, 50, -100, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # looks along +y
    away = camera @ torch.diag(torch.tensor([-1.0, -1, 1, 1]))  # along -y
    grid = TokenGrid.bev_and_cameras((4, 4), (3, 5, 5))
    point = (torch.tensor([[[0.0, 10, 0]]]) - RANGE[:3]) / (RANGE[3:] - RANGE[:3])
    lidar2img = torch.stack([away, camera, camera])[None]
    found = ProjectedQueries.of(point, lidar2img, RANGE, (100, 100), grid)
    assert found.visible[0, 0].tolist() == [True, False, True, False]
