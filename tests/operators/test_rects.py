"""The rects kernel against the reference in fp64, on the shapes that break kernels."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="the kernel is written in Triton")

from operators import WindowBias, attention
from operators.impl.rects import forward, launch, lists, objections
from operators.impl.rects import sizes as chosen
from operators.spec import Request
from operators.testing.cases import Sizes, check_case, make_case, outputs_and_grads
from operators.testing.oracle import make_oracle

TAIL = Sizes(1, 1, 37, 32, bev=(9, 13), cameras=(2, 5, 6), window=(4, 3))  # maps that no tile divides
NARROW = Sizes(1, 2, 9, 16, bev=(21, 1), cameras=(1, 3, 2), window=(5, 2), bias_per_head=True)  # one column
HOSTILE = [
    TAIL,
    NARROW,
    Sizes(1, 1, 1, 16, bev=(1, 1), cameras=(0, 1, 1), window=(1, 1)),  # one query, one key
    Sizes(
        2, 1, 20, 24, bev=(8, 16), cameras=(1, 8, 8), window=(6, 4), placement="borders"
    ),  # whole tiles alone
    Sizes(1, 1, 66, 16, bev=(17, 8), cameras=(1, 4, 4), window=(3, 3), placement="one_cell"),  # two blocks
    Sizes(1, 1, 5, 16, bev=(8, 9), cameras=(1, 3, 3), placement="nowhere"),
]
KINDS = ("none", "window", "gaussian", "global", "local")


@pytest.fixture
def small_tiles(monkeypatch, device):
    """Let the interpreter use other sizes than it does by itself."""

    def use(queries, keys, splits=1):
        if device != "cpu":
            pytest.skip("the GPU keeps its own sizes")
        blocks = replace(chosen.INTERPRETED, queries=queries, keys=keys)
        monkeypatch.setattr(launch, "blocks_for", lambda *_: blocks)
        monkeypatch.setattr(launch, "choose_splits", lambda *_: splits)

    return use


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", HOSTILE, ids=str)
def test_equals_the_reference(sizes, kind, device):
    check_case(make_case(kind, sizes, torch.float32, device), "rects")


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference_with_the_tiles_of_the_gpu(kind, device, small_tiles):
    small_tiles(16, 64, splits=3)
    check_case(make_case(kind, replace(TAIL, bev=(20, 9)), torch.float32, device), "rects")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_equals_the_reference_in_half(dtype, device):
    check_case(make_case("window", TAIL, dtype, device), "rects")


def test_weight_gradients_of_windows_that_cover_everything_cancel(device):
    # Their exact sum is 0: what is left is the rounding of dS and of D = rowsum(dO * O) alone.
    sizes = Sizes(1, 1, 1, 64, bev=(4, 5), cameras=(1, 2, 3), window=(15, 15), placement="one_cell")
    case = make_case("window", sizes, torch.float16, device)
    check_case(case, "rects")
    found = outputs_and_grads(case, "rects")["dweight"]
    # 0.004 with O as exact as the kernel knows it; 0.06 with O as it was stored, in half precision
    assert found.sum().abs() <= 0.02 * found.abs().max()


def test_scores_beyond_the_safe_range_are_computed_again(device):
    case = make_case("window", TAIL, torch.float32, device)
    case.leaves["q"].mul_(200)  # scores of some hundred logits: 2^80 is far exceeded
    oracle = make_oracle(case.leaves, case.bias, case.upstream)
    actual = outputs_and_grads(case, "rects")
    assert all(value.isfinite().all() for value in actual.values())
    oracle.check(actual)


def test_splits_change_nothing_but_rounding(device, small_tiles):
    case = make_case("window", TAIL, torch.float32, device)
    oracle = make_oracle(case.leaves, case.bias, case.upstream)
    for splits in (1, 2, 9):  # 9: more than there are tiles, so that some shares are empty
        small_tiles(64, 32, splits)
        oracle.check(outputs_and_grads(case, "rects"))


def test_gives_the_same_bits_again(device):
    case = make_case("gaussian", TAIL, torch.float32, device)
    first, second = outputs_and_grads(case, "rects"), outputs_and_grads(case, "rects")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_query_without_keys_gives_zeros_and_takes_part_in_no_gradient(device):
    case = make_case("local", replace(TAIL, queries=6), torch.float32, device)
    case.windows[:, 3] = torch.tensor([0, -1, 0, -1], device=device)
    actual = outputs_and_grads(case, "rects")
    assert (actual["out"][:, :, 3] == 0).all()
    assert (actual["dq"][:, :, 3] == 0).all()
    kept = [0, 1, 2, 4, 5]
    rest = replace(
        case,
        leaves=case.leaves | {"q": case.leaves["q"][:, :, kept]},
        windows=case.windows[:, kept],
        upstream=case.upstream[:, :, kept],
    )
    expected = outputs_and_grads(rest, "rects")
    torch.testing.assert_close(actual["dk"], expected["dk"])
    torch.testing.assert_close(actual["dv"], expected["dv"])


def test_nan_is_not_hidden(device):
    case = make_case("window", TAIL, torch.float32, device)
    case.leaves["k"][:, :, 40] = torch.nan
    assert outputs_and_grads(case, "rects")["out"].isnan().all()


@pytest.mark.parametrize(("kind", "name"), [("window", "weight"), ("gaussian", "weight"), ("gaussian", "c")])
def test_a_bias_that_is_nan_is_not_hidden(kind, name, device):
    case = make_case(kind, replace(NARROW, placement="one_cell"), torch.float32, device)
    (case.leaves["weight"] if name == "weight" else case.centers)[:] = torch.nan
    assert outputs_and_grads(case, "rects")["out"].isnan().all()


@pytest.mark.parametrize("leaf", ["q", "k", "v", "weight"])
def test_refuses_forward_mode(leaf, device):
    case = make_case("window", NARROW, torch.float32, device)

    def call(tensor):
        leaves = case.leaves | {leaf: tensor}
        return attention(*(leaves[n] for n in "qkv"), case.bias(leaves["weight"]), impl="rects")

    tensor = case.leaves[leaf]
    with pytest.raises(NotImplementedError, match="rects has no forward-mode derivative"):
        torch.func.jvp(call, (tensor,), (torch.ones_like(tensor),))


def test_takes_any_strides_and_returns_those_of_its_inputs(device):
    case = make_case("window", NARROW, torch.float32, device)
    expected = outputs_and_grads(case, "rects")
    strided = {
        name: leaf.transpose(1, 2).contiguous().transpose(1, 2) if name != "weight" else leaf
        for name, leaf in case.leaves.items()
    }
    strided["v"] = strided["v"].mT.contiguous().mT  # last axis not contiguous either
    case = replace(case, leaves=strided)
    leaves = {name: leaf.clone(memory_format=torch.preserve_format) for name, leaf in strided.items()}
    out = attention(leaves["q"], leaves["k"], leaves["v"], case.bias(leaves["weight"]), impl="rects")
    assert out.stride() == leaves["q"].stride()
    actual = outputs_and_grads(case, "rects")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_expanded_upstream_gradient(device):
    case = make_case("window", NARROW, torch.float32, device)
    ones = replace(case, upstream=torch.ones_like(case.upstream))
    expanded = replace(case, upstream=torch.ones((), device=device).expand(case.upstream.shape))
    first, second = outputs_and_grads(ones, "rects"), outputs_and_grads(expanded, "rects")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("wanted", ["q", "k", "v", "weight"])
def test_one_gradient_alone(wanted, device):
    case = make_case("window", NARROW, torch.float32, device)
    expected = outputs_and_grads(case, "rects")[f"d{wanted}"]
    leaves = {name: leaf.clone().requires_grad_(name == wanted) for name, leaf in case.leaves.items()}
    out = attention(leaves["q"], leaves["k"], leaves["v"], case.bias(leaves["weight"]), impl="rects")
    torch.autograd.backward(out, case.upstream)
    assert torch.equal(leaves[wanted].grad, expected)
    assert all(leaf.grad is None for name, leaf in leaves.items() if name != wanted)


def test_gradient_reaches_a_scale_through_the_weight(device):
    case = make_case("window", NARROW, torch.float32, device)
    scale = torch.tensor(0.5, device=device, requires_grad=True)
    q, k, v, weight = (case.leaves[name] for name in ("q", "k", "v", "weight"))
    found = {}
    for impl in ("rects", "reference"):
        out = attention(q, k, v, case.bias(weight * scale), impl=impl)
        (found[impl],) = torch.autograd.grad(out, scale, case.upstream)
    torch.testing.assert_close(found["rects"], found["reference"])


def test_works_under_autocast_and_checkpointing(device):
    case = make_case("window", NARROW, torch.float32, device)
    q, k, v, weight = (case.leaves[name].clone().requires_grad_() for name in ("q", "k", "v", "weight"))

    def call():
        return attention(q, k, v, case.bias(weight), impl="rects")

    plain = torch.autograd.grad(call(), (q, k, v, weight), case.upstream)
    again = torch.utils.checkpoint.checkpoint(call, use_reentrant=False)
    kept = torch.autograd.grad(again, (q, k, v, weight), case.upstream)
    assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))
    with torch.autocast(device, torch.bfloat16):
        assert call().dtype == torch.bfloat16


def test_compiles_without_a_graph_break(device):
    case = make_case("window", NARROW, torch.float32, device)
    grid, rects = case.sizes.grid, case.windows

    def call(q, k, v, weight):
        return attention(q, k, v, WindowBias(grid, rects, weight), impl="rects") * 2

    leaves = [case.leaves[name].clone().requires_grad_() for name in ("q", "k", "v", "weight")]
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(call(*leaves), leaves, case.upstream)
    actual = torch.autograd.grad(compiled(*leaves), leaves, case.upstream)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_the_custom_op_keeps_its_promises(device):
    case = make_case("window", NARROW, torch.float32, device)
    q, k, v, weight = (case.leaves[name].clone().requires_grad_() for name in ("q", "k", "v", "weight"))
    flat = [n for s in case.sizes.grid.segments for n in (s.offset, s.rows, s.cols)]
    arguments = (q, k, v, case.windows, weight, None, flat, 1, 0.25, 1.0, 1.0, True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(launch.rects_forward, arguments, test_utils=checks)


def test_objects_in_sentences():
    def said(**changes):
        return " ".join(objections(replace(Request("window", device="cuda"), **changes)))

    assert said() == ""
    assert "float16, bfloat16, float32, got float64" in said(dtype="float64")
    assert "16 to 128, got 8" in said(head_size=8)
    assert "16 to 128, got 160" in said(head_size=160)


def test_objects_to_a_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET=1" in objections(Request("window", device="cpu"))[0]


def test_refuses_maps_too_large_for_packed_cells():
    with pytest.raises(ValueError, match="up to 32767 cells a side, got 1 x 40000"):
        lists.cut_grid(((0, 1, 40_000),), 64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, found none")
def test_memory_does_not_grow_with_queries_times_keys():
    def extra(queries, side):
        sizes = Sizes(1, 4, queries, 32, bev=(side, side), cameras=(0, 1, 1), window=(8, 8))
        case = make_case("window", sizes, torch.bfloat16, "cuda")
        outputs_and_grads(case, "rects")
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        outputs_and_grads(case, "rects")
        return torch.cuda.max_memory_allocated() - before

    # Queries and keys times 4 each: 16 times the pairs. Memory that is linear in both grows 4 times.
    assert extra(3200, 256) < 5 * extra(800, 128)  # 5: the lists take 9 bytes for 4096 pairs, and rounding up


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, found none")
def test_replays_in_a_cuda_graph():
    case = make_case("window", TAIL, torch.bfloat16, "cuda")
    q, k, v, weight = (case.leaves[name] for name in ("q", "k", "v", "weight"))

    def call():
        return forward(q, k, v, scale=0.2, rects_form=case.bias(weight).rects_form())

    call()  # compiles, and copies the table of tiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    q.normal_()
    graph.replay()
    assert torch.equal(out, call())
