"""The weight generator: its encoder against MoME's router, its two numbers, its gradients."""

import zlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from operators import TokenGrid
from pipeline.detector.aqr.projection import ProjectedQueries
from pipeline.detector.aqr.query_weights import AqrWeightGenerator

RANGE = torch.tensor([-54.0, -54.0, -5.0, 54.0, 54.0, 3.0])


def encoder_config(dims: int, heads: int, **attn: Any) -> dict[str, Any]:
    layer = {
        "attn_cfgs": [
            {"type": "PETRMultiheadFlashAttention", "embed_dims": dims, "num_heads": heads, **attn}
        ],
        "feedforward_channels": 4 * dims,
        "operation_order": ("cross_attn", "norm", "ffn", "norm"),
    }
    return {"transformerlayers": layer}


def draw(name: str) -> Tensor:
    """Router memory of the golden data (section 9 of its README), first of two samples: faster."""
    values = np.random.RandomState(zlib.crc32(f"A/lam/{name}".encode())).standard_normal((56400, 2, 256))
    return torch.from_numpy(values[:, :1].astype(np.float32)).transpose(0, 1)


@pytest.mark.slow
def test_the_encoder_is_mome_s_where_its_mask_is_right(parity: Any) -> None:
    golden = parity.load("mome_lam")
    generator = AqrWeightGenerator(256, encoder_config(256, 4), window_lidar=5, window_camera=15).eval()
    parity.fill(generator.encoder, "pts_bbox_head.transformer.encoder.")
    grid = TokenGrid.bev_and_cameras((180, 180), (6, 40, 100))
    geometry = ProjectedQueries.of(
        golden["ref_points"][:1], golden["lidar2img"][:1], RANGE, (640, 1600), grid
    )
    seen = geometry.visible[..., 0] & geometry.visible[..., 1:].any(dim=-1)  # elsewhere we mend the mask
    with torch.no_grad():
        generator.bev_type_embed.zero_()  # the golden query embedding has both in it
        generator.rv_type_embed.zero_()
        captured: list[Tensor] = []
        generator.encoder.register_forward_hook(lambda module, args, out: captured.append(out))
        memory = draw("memory")
        query_pos = golden["router_query_embed"].transpose(0, 1)[:1]
        generator(memory + draw("key_pos"), memory, query_pos, geometry)
    expected = golden["router_encoder_out"].transpose(0, 1)[:1]
    assert int(seen.sum()) > 25
    # 1e-4: suggested by the golden data; its own two programs differ by 1e-5
    torch.testing.assert_close(captured[0][seen], expected[seen], rtol=0, atol=1e-4)
    assert (captured[0] - expected)[~seen].abs().max() > 1e-2


@pytest.fixture
def small() -> tuple[AqrWeightGenerator, tuple[Tensor, Tensor, Tensor, ProjectedQueries]]:
    grid = TokenGrid.bev_and_cameras((4, 4), (2, 3, 5))
    cells = torch.zeros(2, 3, 3, 2, dtype=torch.int64)
    visible = torch.zeros(2, 3, 3, dtype=torch.bool)
    visible[:, 0] = True
    visible[:, 1, 0] = True  # the third query is seen by nothing
    generator = AqrWeightGenerator(16, encoder_config(16, 2, dropout=0.0), window_lidar=3, window_camera=3)
    inputs = (*torch.randn(2, 2, grid.num_keys, 16), torch.randn(2, 3, 16))
    return generator, (*inputs, ProjectedQueries(grid, cells, visible))


def test_weights_lie_between_minus_one_and_one_and_start_trusting(small: Any) -> None:
    generator, inputs = small
    weights = generator(*inputs)
    assert weights.shape == (2, 3, 2)
    assert weights.abs().max() <= 1
    with torch.no_grad():
        generator.weight_head.weight.zero_()
    torch.testing.assert_close(generator(*inputs), torch.full((2, 3, 2), float(np.tanh(1.5))))


def test_only_tokens_in_the_windows_matter(small: Any) -> None:
    generator, (keys, memory, query_pos, geometry) = small
    with torch.no_grad():
        before = generator(keys, memory, query_pos, geometry)
        far = torch.zeros_like(memory)
        far[:, 15] += 10.0  # BEV cell (3, 3), outside the 3 x 3 window around (0, 0)
        assert torch.equal(generator(keys + far, memory + far, query_pos, geometry), before)
        near = torch.zeros_like(memory)
        near[:, 0] += 10.0
        after = generator(keys + near, memory + near, query_pos, geometry)
    assert not torch.equal(after[:, 1], before[:, 1])
    assert torch.equal(after[:, 2], before[:, 2])


def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(small: Any) -> None:
    generator, inputs = small
    generator(*inputs).square().sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_sites_are_named_by_layer() -> None:
    generator = AqrWeightGenerator(16, {**encoder_config(16, 2), "num_layers": 2})
    assert [site.site for site in generator.attentions] == ["aqr.0.cross", "aqr.1.cross"]
    assert {site.choice.bias for site in generator.attentions} == {"local"}
