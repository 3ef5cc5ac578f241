"""Fresh weights: a query reads the keys near its place, as they are, and its outputs start alike."""

import math

import pytest
import torch
from torch import Tensor, nn

from pipeline.detector.build import build_model
from pipeline.detector.transformer.initial_weights import (
    POSITION_STD,
    align,
    bev_inputs,
    pass_values,
    ray_inputs,
    whiten,
)
from pipeline.detector.transformer.position_encoding import (
    PositionMlp,
    cell_centres,
    embed_bev_cells,
    sine_embedding_2d,
)
from pipeline.detector.transformer.site_attention import SiteAttention

DIMS, HEADS, CELLS, SIDE_M = 256, 8, 128, 102.4
RANGE = torch.tensor([-51.2, -51.2, -5.0, 51.2, 51.2, 3.0])


def attended(mlp: PositionMlp, in_proj_weight: Tensor, radius_m: float) -> float:
    """Share of the attention of queries, with contents like a layer norm's, near their places."""
    places = torch.rand(32, 2)
    queries = torch.randn(32, DIMS) + mlp(sine_embedding_2d(places, DIMS))
    keys = 0.6 * torch.randn(CELLS**2, DIMS) + embed_bev_cells(mlp, CELLS, CELLS)
    q, k = (x @ w.T for x, w in zip((queries, keys), in_proj_weight.chunk(3), strict=False))
    scores = torch.einsum("qhd,khd->hqk", *(x.unflatten(1, (HEADS, -1)) for x in (q, k)))
    weights = (scores / math.sqrt(DIMS // HEADS)).softmax(dim=-1).mean(dim=0)
    y, x = torch.meshgrid(cell_centres(CELLS), cell_centres(CELLS), indexing="ij")
    cells = torch.stack([x, y], dim=-1).flatten(0, 1)
    return float((weights * (torch.cdist(places, cells) * SIDE_M < radius_m)).sum(dim=1).mean())


@torch.no_grad()
def test_a_fresh_query_reads_near_its_place() -> None:
    mlp, weight = PositionMlp(2 * DIMS, DIMS, DIMS), torch.empty(3 * DIMS, DIMS)
    nn.init.xavier_uniform_(weight)
    usual = attended(mlp, weight, 4.0)
    whiten(mlp, bev_inputs(DIMS))
    align(weight)
    assert usual < 0.02
    assert attended(mlp, weight, 4.0) > 0.4


@pytest.mark.parametrize("sensor", ["bev", "camera"])
@torch.no_grad()
def test_embeddings_are_spread_over_the_range(sensor: str) -> None:
    inputs = bev_inputs(DIMS) if sensor == "bev" else ray_inputs(64, RANGE)
    mlp = PositionMlp(inputs.shape[1], DIMS, DIMS)
    whiten(mlp, inputs)
    found = mlp(inputs)
    assert found.mean(dim=0).abs().max() < 1e-2
    assert float(found.std()) == pytest.approx(POSITION_STD, rel=0.01)
    sizes = [float(layer.weight.std()) for layer in mlp if isinstance(layer, nn.Linear)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


@torch.no_grad()
def test_rays_are_those_of_a_camera_in_the_middle() -> None:
    depths = 64
    points = ray_inputs(depths, RANGE).view(-1, depths, 3) * (RANGE[3:] - RANGE[:3]) + RANGE[:3]
    distance = points[..., :2].norm(dim=-1)
    torch.testing.assert_close(distance[0], 1 + torch.arange(depths) / depths * 50.2)
    assert (points[..., 2].abs() / distance).max() <= math.tan(math.radians(20)) * 1.001


@torch.no_grad()
def test_what_is_read_arrives_as_it_is() -> None:
    site = SiteAttention(DIMS, HEADS, "decoder.0.cross", dropout=0.0)
    pass_values(site.attn.in_proj_weight, site.attn.out_proj.weight)
    value = torch.randn(1, 1, DIMS).expand(1, 50, DIMS)
    query, key = torch.randn(1, 3, DIMS), torch.randn(1, 50, DIMS)
    torch.testing.assert_close(site(query, key, value) - query, value[:, :3], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_fresh_head_has_them() -> None:
    head = build_model("experiments/configs/cmt_aqr_pillar_mini.py").pts_bbox_head
    for site in head.sites.values():
        of_queries, of_keys, of_values = site.attn.in_proj_weight.chunk(3)
        assert torch.equal(of_queries, of_keys)
        passes = site.attn.out_proj.weight @ of_values
        as_it_is = torch.allclose(passes, torch.eye(len(passes)), atol=1e-4)
        assert as_it_is == (site.site.startswith("decoder.") and site.site.endswith(".cross"))
    dims = head.bev_embedding.first.in_features // 2
    assert float(head.bev_embedding(bev_inputs(dims)).std()) == pytest.approx(POSITION_STD, rel=0.01)
    rays = ray_inputs(head.depth_num, head.point_range)
    assert float(head.rv_embedding(rays).std()) == pytest.approx(POSITION_STD, rel=0.1)
