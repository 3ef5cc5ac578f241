"""``torch.compile`` of attention: whole graphs, and right results for changing numbers of queries."""

import pytest
import torch

from operators import GaussianBias, GlobalBias, LocalMask, TokenGrid, WindowBias, attention
from operators.spec import IMPLEMENTATIONS
from operators.testing.cases import Sizes, gradients_served, make_case

NUMBERS = (5, 7, 11, 19, 23)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRUNCATED = torch.float32 if DEVICE == "cpu" else torch.float16  # lowrank's kernel on a GPU takes halves only
pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's own, about its internals


def case_with(queries, kind, dtype=torch.float32):
    sizes = Sizes(1, 2, queries, 16, bev=(5, 4), cameras=(2, 3, 3), window=(3, 2))
    return make_case(kind, sizes, dtype, DEVICE)


def bias_of(kind, grid, windows, weight):
    if kind == "none":
        return None
    if kind == "gaussian":
        return GaussianBias(grid, windows, weight, windows[..., ::2].float() + 0.4, 1.5, 2.0)
    if kind == "local":
        return LocalMask(grid, windows)
    return GlobalBias(grid, weight) if kind == "global" else WindowBias(grid, windows, weight)


SERVED = [
    (impl, kind)
    for impl in IMPLEMENTATIONS
    for kind in ("global" if impl == "lowrank" else "window",)
    if gradients_served(impl, case_with(5, kind)) is not None
]
GATHERED = [("gathered", kind) for kind in ("none", "gaussian", "local") if DEVICE == "cpu"]
STATIC = [(impl, kind, False) for impl, kind in SERVED if impl == "gathered"]  # none on a GPU


@pytest.mark.parametrize(
    ("impl", "kind", "dynamic"),
    [(*pair, how) for pair in SERVED for how in (None, True)]
    + [(*pair, how) for pair in GATHERED for how in (None, True)]
    + STATIC,
)
def test_one_function_serves_all_numbers_of_queries(impl, kind, dynamic):
    torch.compiler.reset()

    def call(q, k, v, windows, weight, grid):
        return attention(q, k, v, bias_of(kind, grid, windows, weight), impl=impl)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for queries in NUMBERS:
        case = case_with(queries, kind)
        wanted = {"all": ("q", "k", "v", "weight"), "inputs": ("q", "k", "v"), "none": ()}
        names = [n for n in wanted[gradients_served(impl, case)] if n in case.leaves]
        leaves = {n: leaf.clone().requires_grad_(n in names) for n, leaf in case.leaves.items()}
        arguments = (*(leaves[n] for n in "qkv"), case.windows, leaves.get("weight"), case.sizes.grid)
        actual, expected = compiled(*arguments), call(*arguments)
        torch.testing.assert_close(actual, expected)
        if names:
            inputs = [leaves[n] for n in names]
            found = torch.autograd.grad(actual, inputs, case.upstream)
            torch.testing.assert_close(found, torch.autograd.grad(expected, inputs, case.upstream))


def test_one_graph_serves_all_numbers_of_queries():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    grid = TokenGrid.bev_and_cameras((5, 4), (2, 3, 3))

    def call(q, k, v, windows, weight):
        return attention(q, k, v, WindowBias(grid, windows, weight), impl="sdpa_math")

    compiled = torch.compile(call, backend=counter, fullgraph=True, dynamic=True)
    for queries in NUMBERS:
        case = case_with(queries, "window")
        compiled(*(case.leaves[n] for n in "qkv"), case.windows, case.leaves["weight"])
    assert counter.frame_count == 1


@pytest.mark.skipif(DEVICE != "cpu", reason="gathered runs on a CPU")
def test_a_shared_head_of_keys_compiles():
    torch.compiler.reset()

    def call(q, k, v, windows, grid):
        return attention(q, k, v, LocalMask(grid, windows), impl="gathered")

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
    for queries in NUMBERS[:3]:
        case = case_with(queries, "local")
        q, *keys = (case.leaves[n][:, : 1 if n in "kv" else None].clone().requires_grad_() for n in "qkv")
        outputs = [f(q, *keys, case.windows, case.sizes.grid) for f in (compiled, call)]
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(*(torch.autograd.grad(out, [q, *keys], case.upstream) for out in outputs))


def test_a_truncated_bias_compiles():
    torch.compiler.reset()

    def call(q, k, v, windows, weight, grid):
        return attention(q, k, v, WindowBias(grid, windows, weight), impl="lowrank", rank=3)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for queries in NUMBERS[:3]:
        case = case_with(queries, "window", TRUNCATED)
        arguments = (*(case.leaves[n] for n in "qkv"), case.windows, case.leaves["weight"], case.sizes.grid)
        torch.testing.assert_close(compiled(*arguments), call(*arguments))
