"""``gathered``: its lists of pairs, its blocks, and what it refuses. Conformance tests it like all others."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from operators import Unsupported, attention
from operators.impl.gathered import ops, rows, scores
from operators.impl.gathered.pairs import Pairs
from operators.testing.cases import Sizes, check_case, make_case

SIZES = Sizes(2, 2, 21, 16, bev=(7, 9), cameras=(2, 3, 5), window=(4, 3))
KINDS = ("none", "window", "gaussian", "local")


@pytest.mark.parametrize("placement", ["spread", "borders", "nowhere"])
def test_pairs_are_those_that_the_mask_lets_through(placement):
    sizes = replace(SIZES, placement=placement)
    mask = make_case("local", sizes, torch.float32).bias(None)
    pairs = Pairs.of(mask.rects_form())
    expected = mask.dense()[:, 0] == 0  # (B, Q, K)
    found = torch.stack([pairs.query, pairs.key], dim=1)
    assert torch.equal(found.sort(dim=0).values, expected.flatten(0, 1).nonzero().sort(dim=0).values)
    assert torch.equal(pairs.per_query, expected.sum(dim=-1).flatten())
    _, row, col = sizes.grid.key_tables(mask.windows.device)
    assert torch.equal(pairs.cell, torch.stack([row[pairs.key], col[pairs.key]], dim=1))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_chunks_unite(kind, monkeypatch):
    monkeypatch.setattr(scores, "_BLOCK", 300)  # 3 of 93 keys' queries at a time
    monkeypatch.setattr(rows, "_GATHERED", 2000)
    check_case(make_case(kind, SIZES, torch.float32), "gathered", "all")


@pytest.mark.parametrize("kind", ["window", "gaussian", "local"])
def test_keys_beyond_the_map_are_none(kind):
    """As for the reference, whoever does not ask for a check of the values."""
    case = make_case(kind, SIZES, torch.float64)
    move = torch.tensor([-2, 3, -1, 2], dtype=torch.int32)
    shifts = torch.arange(-12, 12, dtype=torch.int32)[torch.arange(SIZES.queries) % 24, None, None]
    bias = replace(case.bias(case.leaves.get("weight")), windows=case.windows + move + shifts)
    tensors = [case.leaves[n] for n in "qkv"]
    torch.testing.assert_close(
        attention(*tensors, bias, impl="gathered"), attention(*tensors, bias, impl="reference")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_double_precision(kind):
    check_case(make_case(kind, SIZES, torch.float64), "gathered", "all")


@pytest.mark.filterwarnings("ignore")  # the compiler's own, about its internals
@pytest.mark.parametrize("kind", KINDS)
def test_the_ops_for_the_compiler_keep_their_word(kind):
    """Sizes, strides, gradients and symbolic shapes are what the ops tell the compiler."""
    case = make_case(kind, replace(SIZES, queries=5, bev=(3, 4)), torch.float64)
    leaves = {n: leaf.clone().requires_grad_(leaf.is_floating_point()) for n, leaf in case.leaves.items()}
    q, k, v = (leaves[n] for n in "qkv")
    bias = None if kind == "none" else case.bias(leaves.get("weight"))
    form = None if bias is None else bias.rects_form()
    flat = [0] if form is None else ops._flat(form.grid)
    if kind == "local":
        keys = [x[:, 0].detach().flatten(0, 1).requires_grad_() for x in (k, v)]
        asked = q.detach().transpose(1, 2).flatten(0, 1).requires_grad_()
        torch.library.opcheck(ops.gathered_rows, (asked, *keys, form.rects, flat))
        return
    field = (None, 1.0, 1.0) if form is None or form.gaussian is None else form.gaussian
    rects, weight = (None, None) if form is None else (form.rects, form.weight)
    torch.library.opcheck(ops.gathered_scores, (q, k, v, rects, weight, field[0], flat, *field[1:], True))


@pytest.mark.parametrize("kind", KINDS)
def test_no_matrix_of_all_pairs_is_made_without_gradients(kind, monkeypatch):
    sizes = replace(SIZES, queries=65, bev=(64, 64))
    monkeypatch.setattr(scores, "_BLOCK", 4 * sizes.grid.num_keys)
    case = make_case(kind, sizes, torch.float32)
    weight = case.leaves.get("weight")
    largest = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made = out if isinstance(out, tuple) else (out,)
            largest.extend(t.numel() for t in made if isinstance(t, torch.Tensor) and not t._is_view())
            return out

    with torch.no_grad(), Watch():
        attention(*(case.leaves[n] for n in "qkv"), case.bias(weight), impl="gathered")
    # Keys and values themselves may be copied: 32 channels a key, fewer than 65 queries.
    assert max(largest) < sizes.batch * sizes.queries * sizes.grid.num_keys


@pytest.mark.parametrize(
    ("kind", "dtype", "sentence"),
    [
        ("global", torch.float32, "a global bias has none; lowrank is exact for it"),
        ("dense", torch.float32, "takes NONE or RECTS"),
        ("window", torch.bfloat16, "computes in float32 or float64, got bfloat16"),
    ],
)
def test_refuses(kind, dtype, sentence):
    case = make_case(kind, SIZES, dtype)
    with pytest.raises(Unsupported, match=sentence):
        attention(*(case.leaves[n] for n in "qkv"), case.bias(case.leaves["weight"]), impl="gathered")


def test_shared_keys_are_repeated_keys():
    case = make_case("local", SIZES, torch.float64)
    one = [case.leaves[n][:, :1].clone().requires_grad_() for n in "kv"]
    found = []
    for keys in (one, [x.expand(-1, SIZES.heads, -1, -1) for x in one]):
        q = case.leaves["q"].clone().requires_grad_()
        out = attention(q, *keys, case.bias(None), impl="gathered")
        found.append([out, *torch.autograd.grad(out, [q, *one], case.upstream)])
    torch.testing.assert_close(*found)


def test_others_want_a_head_of_keys_for_every_head():
    case = make_case("local", SIZES, torch.float32)
    keys = [case.leaves[n][:, :1] for n in "kv"]
    with pytest.raises(Unsupported, match="takes a head of keys for every head of q"):
        attention(case.leaves["q"], *keys, case.bias(None), impl="sdpa_math")
