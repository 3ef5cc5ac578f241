"""Weight maps: the formula cell by cell, and features multiplied without telling where the objects are."""

from typing import Any

import pytest
import torch
from torch import Tensor

from operators import TokenGrid
from pipeline.config.plan import Plan
from pipeline.data.sample import Sample
from pipeline.detector.aqr.projection import ProjectedQueries
from pipeline.detector.aqr.weight_maps import WeightMapModulation, weight_maps
from pipeline.detector.build import build_model
from pipeline.detector.cmt_detector import CmtDetector
from pipeline.detector.openmmlab.data_samples import collate
from pipeline.detector.transformer.position_encoding import Memory

MINI = "experiments/configs/cmt_aqr_pillar_mini.py"
HEAD = "model.pts_bbox_head"
GRID = TokenGrid.bev_and_cameras((4, 5), (2, 3, 4))


def geometry(queries: int = 3) -> ProjectedQueries:
    draw = torch.Generator().manual_seed(1)
    sizes = torch.tensor([[s.rows, s.cols] for s in GRID.segments])
    cells = (torch.rand(2, queries, GRID.num_segments, 2, generator=draw) * sizes).long()
    visible = torch.rand(2, queries, GRID.num_segments, generator=draw) > 0.4
    return ProjectedQueries(GRID, cells, visible)


def test_a_cell_holds_the_mean_weight_around_it_and_a_vote_for_one() -> None:
    where, sigma = geometry(), 1.3
    weights = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1
    maps = weight_maps(weights, where, sigma)
    for s, segment in enumerate(GRID.segments):
        for cell in range(segment.num_keys):
            row, col = divmod(cell, segment.cols)
            for b in range(2):
                above, below = 1.0, 1.0
                for q in range(3):
                    if where.visible[b, q, s]:
                        away = where.cells[b, q, s] - torch.tensor([row, col])
                        vote = float(torch.exp(-(away**2).sum() / (2 * sigma**2)))
                        above += vote * float(weights[b, q, segment.modality])
                        below += vote
                assert float(maps[s][b, row, col]) == pytest.approx(above / below, abs=1e-6)  # fp32


def test_far_from_every_query_nothing_is_multiplied_and_a_map_stays_within_one() -> None:
    grid = TokenGrid.bev_and_cameras((40, 40), (1, 3, 3))
    cells, visible = torch.zeros(1, 900, 2, 2, dtype=torch.int64), torch.zeros(1, 900, 2, dtype=torch.bool)
    visible[..., 0] = True
    bev, camera = weight_maps(torch.full((1, 900, 2), -1.0), ProjectedQueries(grid, cells, visible), 1.0)
    assert bev[0, 0, 0] == pytest.approx(-899 / 901)
    assert bev[0, 20:, 20:].eq(1).all()
    assert camera.eq(1).all()


def test_half_precision_counts_the_votes_all_the_same() -> None:
    where, weights = geometry(900), torch.full((2, 900, 2), 0.3)
    exact = weight_maps(weights, where, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(weight_maps(weights, where, 1.0), exact, strict=True))


@pytest.fixture(scope="module")
def model() -> CmtDetector:
    torch.manual_seed(0)
    return build_model(MINI, [(f"{HEAD}.weight_map_config", '{"type": "WeightMapModulation", "sigma": 1.0}')])


def train(model: CmtDetector, sample: Sample, cross: str) -> list[tuple[Memory, Tensor, ProjectedQueries]]:
    """One backward pass; return what the map was given."""
    model.apply_plan(Plan.parse(f"aqr.*=local/sdpa_math;*.self=none/sdpa_math;d*.cross={cross}/sdpa_math"))
    given: list[Any] = []
    hook = model.pts_bbox_head.weight_map.register_forward_pre_hook(lambda _, seen: given.append(seen))
    model.zero_grad()
    data = model.train().data_preprocessor(collate([sample]), training=True)
    torch.autograd.backward(model.parse_losses(model(**data, mode="loss"))[0])
    hook.remove()
    return given


def test_the_weights_learn_through_the_map_alone(model: CmtDetector, make_sample: Any) -> None:
    train(model, make_sample(0), "none")
    assert model.pts_bbox_head.aqr.weight_head.weight.grad.abs().max() > 0
    assert not model.bias_scale.grad
    train(model, make_sample(0), "window")
    assert model.bias_scale.grad.abs() > 0


def test_denoising_queries_paint_nothing(model: CmtDetector, make_sample: Any) -> None:
    ((_, weights, where),) = train(model, make_sample(0), "window")
    assert weights.shape[1] == where.cells.shape[1] == where.visible.shape[1] == model.pts_bbox_head.num_query


def test_the_decoder_reads_multiplied_tokens_and_unchanged_positions(
    model: CmtDetector, make_sample: Any
) -> None:
    ((memory, weights, where),) = train(model, make_sample(0), "window")
    after = model.pts_bbox_head.weight_map(memory, weights, where)
    factor = torch.cat([part.flatten(1) for part in weight_maps(weights, where, 1.0)], dim=1)
    torch.testing.assert_close(after.tokens, memory.tokens * factor[..., None])
    assert after.position is memory.position
    assert factor.std() > 1e-3


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma: expected more than 0 cells, got 0"):
        WeightMapModulation(sigma=0)
    with pytest.raises(ValueError, match="weight_map_config needs aqr_config, which makes the weights"):
        build_model(
            MINI,
            [
                (f"{HEAD}.weight_map_config", '{"type": "WeightMapModulation"}'),
                *((f"{HEAD}.{key}_config", "null") for key in ("aqr", "bias")),
            ],
        )
