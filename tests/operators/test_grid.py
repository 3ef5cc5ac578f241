"""The key grid: layout, windows, and what is refused."""

import pytest
import torch

from operators import Segment, TokenGrid
from operators.grid import EMPTY_RECT

GRID = TokenGrid.bev_and_cameras(bev=(6, 7), cameras=(2, 3, 4))


def test_bev_comes_first_then_every_camera():
    assert GRID.segments == (Segment(0, 6, 7, 0), Segment(42, 3, 4, 1), Segment(54, 3, 4, 1))
    assert (GRID.num_keys, GRID.num_segments) == (66, 3)


def test_real_memories_have_their_published_sizes():
    assert TokenGrid.bev_and_cameras((128, 128), (6, 20, 50)).num_keys == 22_384
    assert TokenGrid.bev_and_cameras((180, 180), (6, 40, 100)).num_keys == 56_400


def test_per_segment_spreads_and_is_differentiable():
    weight = torch.tensor([[1.0, 2.0]], requires_grad=True)
    spread = GRID.per_segment(weight)
    assert spread.tolist() == [[1.0, 2.0, 2.0]]
    spread.sum().backward()
    assert weight.grad.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("size", "before", "after"), [(1, 0, 0), (2, 0, 1), (3, 1, 1), (8, 3, 4), (15, 7, 7)]
)
def test_windows_span_what_aqr_says(size, before, after):
    grid = TokenGrid.bev_and_cameras(bev=(40, 50), cameras=(0, 1, 1))
    cells = torch.tensor([20, 25]).expand(1, 1, 1, 2)
    rects = grid.windows_around(cells, torch.ones(1, 1, 1, dtype=torch.bool), (size, 3))
    assert rects.dtype == torch.int32
    assert rects.flatten().tolist() == [20 - before, 20 + after, 25 - before, 25 + after]


def test_windows_are_cut_at_the_borders_of_their_own_segment():
    cells = torch.tensor([[0, 0], [2, 3], [0, 3]]).expand(1, 1, 3, 2)
    rects = GRID.windows_around(cells, torch.ones(1, 1, 3, dtype=torch.bool), (5, 4))
    assert rects[0, 0].tolist() == [[0, 2, 0, 2], [1, 2, 2, 3], [0, 2, 2, 3]]


@pytest.mark.parametrize("cell", [(-1, 2), (2, -1), (6, 2), (2, 7)])
def test_cells_off_the_map_have_no_window(cell):
    cells = torch.tensor(cell).expand(1, 1, 3, 2)
    rects = GRID.windows_around(cells, torch.ones(1, 1, 3, dtype=torch.bool), (5, 5))
    assert tuple(rects[0, 0, 0].tolist()) == EMPTY_RECT


def test_unseen_queries_have_no_window():
    rects = GRID.windows_around(
        torch.zeros(2, 5, 3, 2).long(), torch.zeros(2, 5, 3, dtype=torch.bool), (3, 3)
    )
    assert (rects == torch.tensor(EMPTY_RECT)).all()


def test_whole_rects_cover_everything():
    rects = GRID.whole_rects(2, 4, torch.device("cpu"))
    assert rects.shape == (2, 4, 3, 4)
    assert rects[1, 3].tolist() == [[0, 5, 0, 6], [0, 2, 0, 3], [0, 2, 0, 3]]


def test_key_tables_name_every_key():
    segment, row, col = GRID.key_tables(torch.device("cpu"))
    assert (segment[53].item(), row[53].item(), col[53].item()) == (1, 2, 3)
    for i, s in enumerate(GRID.segments):
        mine = segment == i
        assert (row[mine] * s.cols + col[mine] + s.offset == torch.arange(GRID.num_keys)[mine]).all()


def test_refuses_gaps_and_empty_segments():
    with pytest.raises(ValueError, match=r"segment 1: expected offset 4 \(where the last one ended\), got 5"):
        TokenGrid((Segment(0, 2, 2, 0), Segment(5, 1, 1, 1)))
    with pytest.raises(ValueError, match="segment 0: expected rows and cols >= 1"):
        TokenGrid((Segment(0, 0, 2, 0),))
    with pytest.raises(ValueError, match="at least one segment, got none"):
        TokenGrid(())


def test_refuses_wrong_shapes_and_sizes():
    cells, visible = torch.zeros(1, 2, 3, 2).long(), torch.ones(1, 2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"expects cells \(B, Q, 3, 2\)"):
        GRID.windows_around(cells[:, :, :2], visible, (3, 3))
    with pytest.raises(ValueError, match="at least 1 cell"):
        GRID.windows_around(cells, visible, (3, 0))
    with pytest.raises(ValueError, match=r"\(\.\.\., 2\) = \(LiDAR, camera\), got \(1, 3\)"):
        GRID.per_segment(torch.zeros(1, 3))


def test_key_tables_made_in_inference_mode_serve_training_too() -> None:
    grid = TokenGrid.bev_and_cameras((3, 5), (2, 2, 7))
    with torch.inference_mode():
        segment, _, _ = grid.key_tables(torch.device("cpu"))
    weight = torch.randn(2, grid.num_segments, requires_grad=True)
    weight.index_select(1, segment).sum().backward()
    assert weight.grad is not None


def test_cells_that_are_no_whole_numbers_are_refused():
    cells, visible = torch.zeros(1, 2, 3, 2), torch.ones(1, 2, 3, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"whole cells \(row, column\), got torch.float32.*floor"):
        GRID.windows_around(cells, visible, (3, 3))
