# mypy: disallow-incomplete-defs=False
"""Gradients of keys and values: one program per tile of keys, over all blocks of queries.

Scores are transposed, keys by queries, because dV and dK need P and dS as left operands. The notation is that
of ``query_grad_kernels``.
"""

import triton
import triton.language as tl

from operators.impl.rects.scores import (
    GAUSSIAN,
    LOG2E,
    MASK,
    NONE,
    cell_of_keys,
    gaussian_and_slope,
    held_by_cell,
    next_tile,
    own_cells,
    shape_offsets,
)


@triton.jit
def key_step(k, v, q, g, base, delta, dk, dv, scale_log2, PRECISION: tl.constexpr):
    """Return dK (before its scale) and dV with one block of queries (M, D) added; scores are transposed."""
    p = tl.exp2(tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2 + base)
    dv = tl.dot(p.to(g.dtype), g, dv, input_precision=PRECISION)
    dp = tl.dot(v, tl.trans(g), input_precision=PRECISION)
    ds = p * (dp - delta)
    return tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION), dv


@triton.jit
def next_block(listing, i, num_blocks, KIND: tl.constexpr):
    """Return the i-th block of a list, or its last. Loops read it one turn ahead (``scores.next_plain``)."""
    if KIND == NONE:
        return i
    return tl.load(listing + tl.minimum(i, num_blocks - 1))


@triton.jit
def key_grad_kernel(
    SortedQ,
    SorteddO,
    SortedLse,
    SortedDelta,
    K,
    V,
    dK,
    dV,
    order,
    sorted_rects,
    weight,
    centers,
    tiles,
    lists,
    counts,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    dk_b,
    dk_h,
    dk_n,
    dk_d,
    dv_b,
    dv_h,
    dv_n,
    dv_d,
    w_b,
    w_h,
    w_n,
    w_s,
    c_b,
    c_n,
    c_s,
    c_d,
    heads,
    num_queries,
    padded,
    num_keys,
    num_tiles,
    num_blocks,
    num_segments,
    scale,
    scale_log2,
    decay,
    limit,
    KIND: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    TOUCHED_STAGES: tl.constexpr,
):
    """Compute dK and dV of one tile of keys over all blocks of queries.

    Operands:
        lists: (B, tiles, blocks): blocks that touch the tile from the front, the others from the back.
        counts: (B, tiles): number of blocks that touch the tile.
    """
    tile = tl.program_id(0)
    pair = tl.program_id(1)
    batch = (pair // heads).to(tl.int64)
    head = (pair % heads).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    m = tl.arange(0, BLOCK_Q)
    in_head = d < HEAD
    if KIND == NONE:
        keys = tile * TILE_K + tl.arange(0, TILE_K)
        real = keys < num_keys
    else:
        key0, shape, corner, packed = next_tile(tiles, tile, num_tiles)
        segment = packed >> 13
        keys = key0 + shape_offsets(shape, TILE_K)
        real = own_cells(shape, packed, TILE_K)
        row, col = cell_of_keys(shape, corner, TILE_K)
    keys = keys.to(tl.int64)
    kept = real[:, None] & in_head[None, :]
    k = tl.load((K + batch * k_b + head * k_h + keys * k_n)[:, None] + d[None, :], mask=kept, other=0.0)
    v = tl.load((V + batch * v_b + head * v_h + keys * v_n)[:, None] + d[None, :], mask=kept, other=0.0)
    q_rows = SortedQ + pair.to(tl.int64) * padded * HEAD
    g_rows = SorteddO + pair.to(tl.int64) * padded * HEAD
    lse_rows = SortedLse + pair.to(tl.int64) * padded
    delta_rows = SortedDelta + pair.to(tl.int64) * padded
    dk = tl.zeros([TILE_K, BLOCK_D], tl.float32)
    dv = tl.zeros([TILE_K, BLOCK_D], tl.float32)
    listing = lists + (batch * num_tiles + tile) * num_blocks
    touched = 0
    if KIND != NONE:
        touched = tl.load(counts + batch * num_tiles + tile)
    # Keys beyond the segment need no mask: their rows are computed and not stored.
    if KIND != MASK:
        block = next_block(listing, touched, num_blocks, KIND)
        for i in tl.range(touched, num_blocks, num_stages=STAGES):
            places = block * BLOCK_Q + m
            block = next_block(listing, i + 1, num_blocks, KIND)
            spots = places[:, None] * HEAD + d[None, :]
            if HEAD == BLOCK_D:
                q = tl.load(q_rows + spots)
                g = tl.load(g_rows + spots)
            else:
                q = tl.load(q_rows + spots, mask=in_head[None, :], other=0.0)
                g = tl.load(g_rows + spots, mask=in_head[None, :], other=0.0)
            base = -tl.load(lse_rows + places)[None, :]
            delta = tl.load(delta_rows + places)[None, :]
            dk, dv = key_step(k, v, q, g, base, delta, dk, dv, scale_log2, PRECISION)
    if KIND != NONE:
        cell = ((row << 16) | col)[:, None]
        rects_here = sorted_rects + (batch * num_segments + segment) * 2 * padded
        block = next_block(listing, 0, num_blocks, KIND)
        for i in tl.range(0, touched, num_stages=TOUCHED_STAGES):
            places = block * BLOCK_Q + m
            block = next_block(listing, i + 1, num_blocks, KIND)
            spots = places[:, None] * HEAD + d[None, :]
            q = tl.load(q_rows + spots, mask=in_head[None, :], other=0.0)
            g = tl.load(g_rows + spots, mask=in_head[None, :], other=0.0)
            base = -tl.load(lse_rows + places)[None, :]
            delta = tl.load(delta_rows + places)[None, :]
            rows = tl.load(order + batch * padded + places)
            present = rows < num_queries
            rows = rows.to(tl.int64)
            first = tl.load(rects_here + places)[None, :]
            last = tl.load(rects_here + padded + places)[None, :]
            held = held_by_cell(cell, first, last)
            if KIND == MASK:
                bias = tl.where(held, base, float("-inf"))
            else:
                weights = weight + batch * w_b + head * w_h + rows * w_n + segment * w_s
                added = tl.load(weights, mask=present, other=0.0).to(tl.float32)[None, :]
                if KIND == GAUSSIAN:
                    middles = centers + batch * c_b + rows * c_n + segment * c_s
                    center_row = tl.load(middles, mask=present, other=0.0).to(tl.float32)[None, :]
                    center_col = tl.load(middles + c_d, mask=present, other=0.0).to(tl.float32)[None, :]
                    bias, _slope = gaussian_and_slope(
                        held, added, row[:, None], col[:, None], center_row, center_col, decay, limit
                    )
                    bias += base
                else:
                    bias = tl.where(held, added * LOG2E + base, base)
            dk, dv = key_step(k, v, q, g, bias, delta, dk, dv, scale_log2, PRECISION)
    dk_rows = dK + batch * dk_b + head * dk_h + keys * dk_n
    dv_rows = dV + batch * dv_b + head * dv_h + keys * dv_n
    tl.store(dk_rows[:, None] + d[None, :] * dk_d, (dk * scale).to(dK.dtype.element_ty), mask=kept)
    tl.store(dv_rows[:, None] + d[None, :] * dv_d, dv.to(dV.dtype.element_ty), mask=kept)
