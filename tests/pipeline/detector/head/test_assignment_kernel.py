"""The GPU kernel's assignment costs as little as SciPy's. Without a GPU, Triton's interpreter runs it."""

import os
import subprocess
import sys

import pytest
import torch
from scipy.optimize import linear_sum_assignment

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported

pytestmark = [
    # What NumPy says in Triton's interpreter, and a GPU does not.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),
]


def assigned(cost, counts):
    from pipeline.detector.head.assignment_kernel import assign

    return assign(cost.to(DEVICE), torch.tensor(counts, device=DEVICE)).cpu()


@pytest.mark.parametrize("integers", [False, True])
def test_every_assignment_costs_what_scipys_does(integers):
    counts, queries = [7, 0, 1, 12], 13
    cost = torch.randn(2, len(counts), 12, queries)
    if integers:  # many ties
        cost = (2 * cost).round()
    matched = assigned(cost, counts)
    for layer in range(2):
        for b, count in enumerate(counts):
            query = (matched[layer, b] >= 0).nonzero().squeeze(1)
            box = matched[layer, b, query]
            assert sorted(box.tolist()) == list(range(count))
            part = cost[layer, b, :count]
            found = linear_sum_assignment(part.numpy())
            if not integers:
                assert query.tolist() == sorted(found[1].tolist())
            torch.testing.assert_close(part[box, query].sum(), part[found].sum())


def test_queries_that_all_boxes_want_are_shared_out_at_least_cost():
    """Every box prefers the same query, so that paths grow as long as they can."""
    boxes = 9
    cost = torch.arange(boxes)[:, None] * torch.arange(10.0)[None]
    matched = assigned(cost[None, None], [boxes])[0, 0]
    best = cost.numpy()[linear_sum_assignment(cost.numpy())].sum()
    query = (matched >= 0).nonzero().squeeze(1)
    assert cost[matched[query], query].sum().item() == best


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_costs_that_are_not_finite_end_the_search_too(value):
    cost = torch.randn(1, 1, 4, 6)
    cost[..., 1, :] = value
    matched = assigned(cost, [4])
    assert sorted(matched[matched >= 0].tolist()) == [0, 1, 2, 3]


PROGRAM = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pipeline.detector.head.assignment_kernel import LARGEST, assignment_kernel
types = {"cost_ptr": "*fp32", "counts_ptr": "*i64", "result_ptr": "*i64", "batch": "i32", "places": "i32",
         "queries": "i32", "LARGEST": "constexpr", "BLOCK": "constexpr"}
source = ASTSource(assignment_kernel, types, {"LARGEST": LARGEST, "BLOCK": 1024})
print(len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]))
"""


def test_the_compiler_takes_the_kernel():
    # In a process of its own: with the interpreter on, a kernel is no source for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 0
