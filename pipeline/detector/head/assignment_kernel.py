"""Assignments of least cost on a GPU: shortest augmenting paths, one program per decoder layer and sample.

It is the algorithm of ``scipy.optimize.linear_sum_assignment`` (Crouse, "On implementing 2D rectangular
assignment algorithms", IEEE Transactions on Aerospace and Electronic Systems 52, 2016), in double precision
like there. Duals of boxes are kept at the query that the box has, so that all state lies over the queries.
The host does not wait, and a CUDA graph can capture the launch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 8
"""Warps of a program, which holds its state of some 1,024 queries in registers."""

LARGEST = 1e30
"""A cost that is not a number counts as this, so that every search ends."""


@triton.jit
def _at(values, here):
    """Return the one of ``values`` where ``here`` is true."""
    return tl.sum(tl.where(here, values, tl.zeros_like(values)), axis=0)


@triton.jit
def assignment_kernel(
    cost_ptr, counts_ptr, result_ptr, batch, places, queries, LARGEST: tl.constexpr, BLOCK: tl.constexpr
):
    """Assign the first ``counts[sample]`` rows of one problem of ``cost`` (problems, places, queries)."""
    problem = tl.program_id(0)
    count = tl.load(counts_ptr + problem % batch).to(tl.int32)
    column = tl.arange(0, BLOCK)
    inside = column < queries
    v = tl.zeros([BLOCK], tl.float64)  # dual of a query
    u = tl.zeros([BLOCK], tl.float64)  # dual of the box that the query has
    owner = tl.full([BLOCK], -1, tl.int32)  # that box
    for row in range(0, count):
        shortest = tl.full([BLOCK], float("inf"), tl.float64)
        came_from = tl.full([BLOCK], -1, tl.int32)  # query before this one on the path; -1: the start
        closed = column >= queries
        at = tl.full((), -1, tl.int32)
        box = tl.full((), 0, tl.int32) + row
        own = tl.full((), 0.0, tl.float64)
        lowest = tl.full((), 0.0, tl.float64)
        while box >= 0:
            start = cost_ptr + (problem * places + box).to(tl.int64) * queries
            cost = tl.load(start + column, mask=inside, other=0.0).to(tl.float64)
            cost = tl.where(cost == cost, cost, LARGEST)
            cost = tl.minimum(tl.maximum(cost, -LARGEST), LARGEST)
            through = lowest + cost - own - v
            better = (through < shortest) & (closed == 0)
            shortest = tl.where(better, through, shortest)
            came_from = tl.where(better, at, came_from)
            open_path = tl.where(closed, float("inf"), shortest)
            lowest = tl.min(open_path, axis=0)
            # Among equal ones, one that is free.
            rank = tl.where(owner < 0, column, column + BLOCK)
            at = tl.min(tl.where((open_path == lowest) & (closed == 0), rank, 2 * BLOCK), axis=0) % BLOCK
            here = column == at
            closed = closed | here
            box = _at(owner, here)
            own = _at(u, here)
        gap = tl.where(closed & inside, lowest - shortest, 0.0)
        v -= gap
        u += gap
        before = _at(came_from, column == at)
        while before >= 0:
            there = column == before
            here = column == at
            owner = tl.where(here, _at(owner, there), owner)
            u = tl.where(here, _at(u, there), u)
            at = before
            before = _at(came_from, there)
        here = column == at
        owner = tl.where(here, row, owner)
        u = tl.where(here, lowest, u)
    tl.store(result_ptr + problem * queries + column, owner.to(tl.int64), mask=inside)


def assign(cost: Tensor, counts: Tensor) -> Tensor:
    """Assign boxes to queries with the least total cost, for every decoder layer and sample by itself.

    Args:
        cost: (L, B, M, Q) float32, M <= Q.
        counts: (B,) integers on the same device: the first so many of a sample's M places hold boxes.

    Returns:
        (L, B, Q) int64: the box of each query, or -1.
    """
    layers, batch, places, queries = cost.shape
    result = torch.empty(layers, batch, queries, dtype=torch.int64, device=cost.device)
    block = triton.next_power_of_2(queries)
    launch = assignment_kernel[(layers * batch,)]
    launch(
        cost.contiguous(),
        counts,
        result,
        batch,
        places,
        queries,
        LARGEST=LARGEST,
        BLOCK=block,
        num_warps=WARPS,
    )
    return result
