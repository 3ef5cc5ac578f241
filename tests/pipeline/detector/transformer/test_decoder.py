"""Attention sites and the decoder: laws, config syntax, refusals."""

import pytest
import torch
from torch import nn

from operators import DenseBias, GlobalBias, LocalMask, TokenGrid
from pipeline.config.plan import Choice, PlanError
from pipeline.detector.aqr.query_weights import AQR_KINDS
from pipeline.detector.transformer.decoder import CmtTransformer, Decoder
from pipeline.detector.transformer.ffn import FFN
from pipeline.detector.transformer.site_attention import SiteAttention

DIMS, HEADS = 16, 4
GRID = TokenGrid.bev_and_cameras((3, 4), (2, 2, 3))


def layer(**cross):
    attention = {"embed_dims": DIMS, "num_heads": HEADS, "dropout": 0.0}
    return {
        "attn_cfgs": [
            {"type": "MultiheadAttention", **attention},
            {"type": "PETRMultiheadFlashAttention", **attention, **cross},
        ],
        "feedforward_channels": 32,
        "operation_order": ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
    }


def inputs(batch=2, queries=5):
    keys, memory = torch.randn(2, batch, GRID.num_keys, DIMS)
    return keys, memory, torch.randn(batch, queries, DIMS)


def choices(decoder):
    return {m.site: str(m.choice) for m in decoder.modules() if isinstance(m, SiteAttention)}


def test_site_equals_torch_multi_head_attention():
    site = SiteAttention(DIMS, HEADS, "decoder.0.cross", dropout=0.0)
    oracle = nn.MultiheadAttention(DIMS, HEADS, batch_first=True)
    oracle.load_state_dict(site.attn.state_dict())
    position, memory, query = inputs()
    got = site(query, memory, query_pos=query.flip(1), key_pos=position)
    expected = query + oracle(query + query.flip(1), memory + position, memory)[0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)  # another order of summation over 24 keys


def test_self_attention_equals_torch_with_a_mask():
    site = SiteAttention(DIMS, HEADS, "decoder.0.self", dropout=0.0)
    oracle = nn.MultiheadAttention(DIMS, HEADS, batch_first=True)
    oracle.load_state_dict(site.attn.state_dict())
    query, position = torch.randn(2, 5, DIMS), torch.randn(2, 5, DIMS)
    blocked = torch.rand(5, 5) < 0.4
    blocked.fill_diagonal_(False)
    mask = DenseBias(torch.zeros(1, 1, 5, 5).masked_fill(blocked, -torch.inf))
    x = query + position
    expected = query + oracle(x, x, query, attn_mask=blocked)[0]
    torch.testing.assert_close(site(query, query_pos=position, mask=mask), expected, rtol=1e-5, atol=1e-6)


def test_bias_moves_attention_and_takes_a_gradient():
    site = SiteAttention(DIMS, HEADS, "decoder.0.cross", choice=Choice("global", "sdpa_math"), dropout=0.0)
    _, memory, query = inputs()
    weight = torch.zeros(2, 5, 2, requires_grad=True)
    plain = site(query, memory, bias=GlobalBias(GRID, weight))
    pushed = site(query, memory, bias=GlobalBias(GRID, weight + torch.tensor([3.0, -3.0])))
    assert (plain - pushed).abs().max() > 1e-3
    pushed.square().sum().backward()
    assert weight.grad.abs().min() > 0


def test_a_bias_that_was_not_chosen_is_refused_and_so_is_a_missing_one():
    site = SiteAttention(DIMS, HEADS, "decoder.0.cross")
    memory, query, _ = inputs()
    bias = GlobalBias(GRID, torch.zeros(2, 5, 2))
    with pytest.raises(ValueError, match="expected the bias 'none', got 'global'"):
        site(query, memory, bias=bias)
    site.choice = Choice("global", "sdpa_math")
    with pytest.raises(ValueError, match="expected the bias 'global', got 'none'"):
        site(query, memory)
    with pytest.raises(ValueError, match="cannot be combined"):
        site(query, memory, bias=bias, mask=DenseBias(torch.zeros(1, 1, 5, GRID.num_keys)))


def test_a_self_attention_takes_no_bias():
    decoder = Decoder(1, layer())
    site = next(m for m in decoder.modules() if isinstance(m, SiteAttention))
    with pytest.raises(PlanError, match=r"decoder\.0\.self cannot have the bias 'window'"):
        site.choice = Choice("window", "sdpa_math")


def test_config_syntax_decides_the_choices():
    decoder = Decoder(
        3,
        [
            layer(),
            layer(bias="global", use_flashbias=True),
            layer(bias="window", impl="lowrank", rank=8),
        ],
        default_bias="window",
    )
    assert choices(decoder) == {
        "decoder.0.self": "none/sdpa_math",
        "decoder.0.cross": "window/sdpa_math",
        "decoder.1.self": "none/sdpa_math",
        "decoder.1.cross": "global/lowrank",
        "decoder.2.self": "none/sdpa_math",
        "decoder.2.cross": "window/lowrank@8",
    }


def test_one_config_for_all_layers_is_not_changed():
    cfg = layer()
    before = repr(cfg)
    transformer = CmtTransformer(
        {"type": "PETRTransformerDecoder", "num_layers": 4, "transformerlayers": cfg}
    )
    assert len(transformer.decoder.layers) == 4
    assert repr(cfg) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"with_cp": False, "batch_first": True}, "batch_first"),
        ({"operation_order": ("norm", "self_attn", "cross_attn")}, "post-norm"),
        ({"operation_order": ("self_attn", "norm", "ffn", "norm")}, "attn_cfgs has 2 entries"),
        ({"ffn_cfgs": {"embed_dims": DIMS, "feedforward_channels": 64}}, "feedforward_channels=32"),
        ({"type": "BaseTransformerLayer"}, "expected type 'PETRTransformerDecoderLayer'"),
    ],
)
def test_layer_configs_that_are_refused(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Decoder(1, {**layer(), **change})


@pytest.mark.parametrize(
    ("cross", "message"),
    [
        ({"flash": True}, "unknown keys flash"),
        ({"use_flashbias": True, "impl": "flash"}, "drop one of them"),
        ({"type": "DeformableAttention"}, "unknown attention type"),
        ({"bias": "dense"}, "cannot have the bias 'dense'"),
        ({"num_heads": 3}, "does not divide"),
    ],
)
def test_attention_configs_that_are_refused(cross, message):
    with pytest.raises(ValueError, match=message):
        Decoder(1, layer(**cross))


def test_a_list_of_layers_must_have_one_for_each():
    with pytest.raises(ValueError, match="num_layers=3, but transformerlayers lists 2"):
        Decoder(3, [layer(), layer()])


def test_returned_states_are_normed_once_and_passed_on_without():
    decoder = Decoder(2, layer()).eval()
    nn.init.normal_(decoder.post_norm.weight)  # fresh norms would hide a second application
    keys, memory, query_pos = inputs()
    states = decoder(keys, memory, query_pos)
    state = torch.zeros_like(query_pos)
    for i, one in enumerate(decoder.layers):
        state = one(state, keys, memory, query_pos)
        torch.testing.assert_close(states[i], decoder.post_norm(state))


def test_a_fresh_decoder_does_not_begin_with_zeros():
    """Of zeros the first norm would multiply gradients by 316, and clipping would cut all others."""
    torch.manual_seed(0)
    decoder = Decoder(2, layer())
    decoder(*inputs()).sum(dim=0)[..., 0].sum().backward()
    first, second = (one.attentions[0].attn.out_proj.bias.grad.norm() for one in decoder.layers)
    assert first < 10 * second


def test_position_of_the_memory_is_not_part_of_what_is_read():
    decoder = Decoder(1, layer()).eval()
    keys, memory, query_pos = inputs()
    constant = torch.randn(1, 1, DIMS).expand_as(memory)
    first, second = (decoder(k, constant, query_pos) for k in (keys, torch.zeros_like(keys)))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)  # equal values: weights cannot matter


def grown(module, given):
    """What a module makes of its inputs, all gradients, and the numbers that it keeps beside its inputs."""
    known, kept = {x.data_ptr() for x in (*given, *module.parameters())}, []
    torch.manual_seed(0)  # of dropout
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        out = module(*given)
    grads = torch.autograd.grad(out.square().sum(), [*given, *module.parameters()])
    sizes = {x.data_ptr(): x.numel() for x in kept if x.data_ptr() not in known}
    return [out, *grads], sum(sizes.values())


@pytest.mark.parametrize(
    "module", [SiteAttention(DIMS, HEADS, "aqr.0.cross", dropout=0.5), FFN(DIMS, 64, ffn_drop=0.5)]
)
def test_what_is_recomputed_is_not_kept_and_the_same(module):
    keys, _, query = (x.requires_grad_() for x in inputs())
    site = isinstance(module, SiteAttention)
    results, kept = [], []
    for module.recompute in (False, True):
        found, numbers = grown(module, (query, keys) if site else (query,))
        results.append(found)
        kept.append(numbers)
    assert kept[0] - kept[1] >= (2 * keys.numel() if site else 64 * query.numel() / DIMS)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_recomputing_a_layer_changes_neither_result_nor_gradient():
    kept = Decoder(2, layer())
    redone = Decoder(2, {**layer(), "with_cp": True})
    redone.load_state_dict(kept.state_dict())
    args = inputs()
    gradients = []
    for decoder in (kept, redone):
        decoder.train()(*args).square().sum().backward()
        gradients.append([p.grad for p in decoder.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_the_last_layer_alone():
    decoder = Decoder(3, layer()).eval()
    args = inputs()
    assert torch.equal(decoder(*args, last_only=True)[0], decoder(*args)[-1])


def test_projecting_queries_is_projecting_keys_under_the_local_mask():
    grid = TokenGrid.of((4, 5, 0), (3, 3, 1))
    cells = torch.randint(0, 3, (2, 7, 2, 2))
    visible = torch.rand(2, 7, 2) > 0.4
    visible[:, 0] = False  # a query without a key
    mask = LocalMask(grid, grid.windows_around(cells, visible, (3, 3)))
    site = SiteAttention(DIMS, HEADS, "aqr.0.cross", dropout=0.0, kinds=AQR_KINDS).double()
    torch.nn.init.normal_(site.attn.in_proj_bias)
    query, keys, values = (torch.randn(2, n, DIMS).double().requires_grad_() for n in (7, 29, 29))
    found = []
    for impl in ("sdpa_math", "gathered"):
        site.choice = Choice("local", impl)
        out = site(query, keys, values, bias=mask)
        wanted = [query, keys, values, *site.parameters()]
        found.append([out, *torch.autograd.grad(out.square().sum(), wanted)])
    torch.testing.assert_close(*found)
