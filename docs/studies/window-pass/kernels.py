# ruff: noqa: PLR0913  a kernel takes pointers, strides and sizes
"""Triton kernels of the window pass: what a window bias adds to attention without a bias.

A weight w in a query's rect changes the probability p of a key by p (exp(w) - 1). The kernels visit only the
tiles of keys that a rect touches, in the lists of ``operators.impl.rects.tiles``. They need the log-sum-exp
of the attention without a bias (forward) or that of the result (backward), so no sum needs a shift.
Log-sum-exps here are natural, as the unbiased kernels give and take them.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from operators.impl.rects.scores import (
    LOG2E,
    WINDOW,
    held_by_bits,
    held_by_cell,
    is_cut,
    next_tile,
    own_cells,
    read_segment,
    shape_offsets,
)


@triton.jit
def held_keys(shape, corner, packed, first, last, TILE_K: tl.constexpr):
    """Return which keys of a tile lie in which rects, (M, TILE_K), without those of other tiles."""
    held, _met = held_by_bits(corner, shape & 7, first, last, TILE_K)
    if is_cut(packed):
        held = held & own_cells(shape, packed, TILE_K)[None, :]
    return held


@triton.jit
def forward_kernel(
    Q,
    K,
    V,
    Lse,
    Parts,
    Sums,
    order,
    sorted_rects,
    weight,
    lists,
    counts,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    w_b,
    w_h,
    w_n,
    w_s,
    batches,
    heads,
    num_queries,
    padded,
    num_keys,
    num_tiles,
    num_segments,
    scale,
    D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE_K: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Sum p (exp(w) - 1), alone and times V, over one share of a block's touched tiles.

    Operands:
        Lse: (B, H, Q) float32, of the attention without a bias.
        Parts: (splits, B, H, Q, D) float32. Sums: (splits, B, H, Q) float32.
    """
    if EARLY:
        gdc_launch_dependents()  # the next kernel may start, and waits for the end of this one
    block = tl.program_id(0)
    split = tl.program_id(1)
    pair = tl.program_id(2)
    batch = (pair // heads).to(tl.int64)
    head = (pair % heads).to(tl.int64)
    places = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, D)
    rows = tl.load(order + batch * padded + places)
    present = rows < num_queries
    rows = rows.to(tl.int64)
    q_rows = Q + batch * q_b + head * q_h + rows * q_n
    q = tl.load(q_rows[:, None] + d[None, :], mask=present[:, None], other=0.0)
    flat = pair.to(tl.int64) * num_queries + rows
    base = -tl.load(Lse + flat, mask=present, other=float("inf")) * LOG2E
    k_rows = K + batch * k_b + head * k_h + d[:, None]
    v_cols = V + batch * v_b + head * v_h + d[None, :]
    sorted_rects += batch * num_segments * 2 * padded
    weights = weight + batch * w_b + head * w_h + rows * w_n
    listing = lists + (batch * tl.num_programs(0) + block) * num_tiles * 4
    touched = tl.load(counts + batch * tl.num_programs(0) + block)
    start = touched * split // SPLITS
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, D], tl.float32)
    key0, shape, corner, packed = next_tile(listing, start, num_tiles)
    before = packed >> 13
    first, last, level, _row, _col = read_segment(
        sorted_rects, padded, before, places, present, weights, w_s, weights, 0, 0, WINDOW
    )
    factor = tl.exp(level) - 1
    for i in tl.range(start, touched * (split + 1) // SPLITS, num_stages=STAGES):
        segment = packed >> 13
        if segment != before:
            first, last, level, _row, _col = read_segment(
                sorted_rects, padded, segment, places, present, weights, w_s, weights, 0, 0, WINDOW
            )
            factor = tl.exp(level) - 1
            before = segment
        # Beyond its own cells a cut tile reads other keys. They are valid memory, and masked below.
        offsets = tl.minimum(shape_offsets(shape, TILE_K), num_keys - 1 - key0)
        k = tl.load(k_rows + key0 * k_n + (offsets * k_n)[None, :])
        v = tl.load(v_cols + key0 * v_n + (offsets * v_n)[:, None])
        held = held_keys(shape, corner, packed, first, last, TILE_K)
        key0, shape, corner, packed = next_tile(listing, i + 1, num_tiles)
        scores = tl.dot(q, k, input_precision=PRECISION) * (scale * LOG2E) + base[:, None]
        p = tl.where(held, tl.exp2(scores) * factor[:, None], 0.0)
        total += tl.sum(p, axis=1)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    flat += split.to(tl.int64) * batches * heads * num_queries
    tl.store(Sums + flat, total, mask=present)
    tl.store(Parts + flat[:, None] * D + d[None, :], acc, mask=present[:, None])


@triton.jit
def combine_kernel(
    Plain,
    Lse,
    Parts,
    Sums,
    Out,
    OutLse,
    Rest,
    p_b,
    p_h,
    p_n,
    o_b,
    o_h,
    o_n,
    heads,
    num_queries,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Add the window pass to the attention without a bias.

    Operands:
        Plain, Lse: output (B, H, Q, D) and log-sum-exp (B, H, Q) of the attention without a bias.
        Out, OutLse: those of the result. Rest: (B, H, Q, D) of Out's dtype: what rounding took from Out.
    """
    if EARLY:
        gdc_wait()
    pair = tl.program_id(1)
    pairs = tl.num_programs(1)
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    d = tl.arange(0, D)
    present = rows < num_queries
    kept = present[:, None]
    batch = (pair // heads).to(tl.int64)
    head = (pair % heads).to(tl.int64)
    acc = tl.load((Plain + batch * p_b + head * p_h + rows * p_n)[:, None] + d[None, :], mask=kept, other=0.0)
    acc = acc.to(tl.float32)
    total = tl.full([ROWS], 1.0, tl.float32)
    for split in tl.static_range(SPLITS):
        flat = (split * pairs + pair).to(tl.int64) * num_queries + rows
        total += tl.load(Sums + flat, mask=present, other=0.0)
        acc += tl.load(Parts + flat[:, None] * D + d[None, :], mask=kept, other=0.0)
    acc /= total[:, None]
    flat = pair.to(tl.int64) * num_queries + rows
    rounded = acc.to(Out.dtype.element_ty)
    tl.store((Out + batch * o_b + head * o_h + rows * o_n)[:, None] + d[None, :], rounded, mask=kept)
    tl.store(OutLse + flat, tl.load(Lse + flat, mask=present, other=0.0) + tl.log(total), mask=present)
    rest = (acc - rounded.to(tl.float32)).to(Rest.dtype.element_ty)
    tl.store(Rest + flat[:, None] * D + d[None, :], rest, mask=kept)


@triton.jit
def query_grad_kernel(
    SortedQ,
    SorteddO,
    SortedLse,
    SortedDelta,
    K,
    V,
    Parts,
    dWeight,
    order,
    sorted_rects,
    weight,
    lists,
    counts,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    w_b,
    w_h,
    w_n,
    w_s,
    batches,
    heads,
    num_queries,
    padded,
    num_keys,
    num_tiles,
    num_segments,
    scale,
    D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE_K: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute what the windows add to dQ, and the gradient of the weights, over one share of touched tiles.

    Operands:
        SortedQ, SorteddO, SortedLse, SortedDelta: of ``query_grad_kernels.prepare_kernel``.
        Parts: (splits, B, H, Q, D) float32.
        dWeight: (splits, B, H, Q, S) float32, filled with zeros by the caller.
    """
    block = tl.program_id(0)
    split = tl.program_id(1)
    pair = tl.program_id(2)
    batch = (pair // heads).to(tl.int64)
    head = (pair % heads).to(tl.int64)
    places = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, D)
    rows = tl.load(order + batch * padded + places)
    present = rows < num_queries
    rows = rows.to(tl.int64)
    flat = pair.to(tl.int64) * padded + places
    q = tl.load(SortedQ + flat[:, None] * D + d[None, :])
    g = tl.load(SorteddO + flat[:, None] * D + d[None, :])
    base = -tl.load(SortedLse + flat) * LOG2E
    delta = tl.load(SortedDelta + flat)
    k_cols = K + batch * k_b + head * k_h + d[None, :]
    v_cols = V + batch * v_b + head * v_h + d[None, :]
    sorted_rects += batch * num_segments * 2 * padded
    weights = weight + batch * w_b + head * w_h + rows * w_n
    flat = (split * batches * heads + pair).to(tl.int64) * num_queries + rows
    dw_rows = dWeight + flat * num_segments
    listing = lists + (batch * tl.num_programs(0) + block) * num_tiles * 4
    touched = tl.load(counts + batch * tl.num_programs(0) + block)
    start = touched * split // SPLITS
    dq = tl.zeros([BLOCK_Q, D], tl.float32)
    dw = tl.zeros([BLOCK_Q], tl.float32)
    key0, shape, corner, packed = next_tile(listing, start, num_tiles)
    before = packed >> 13
    first, last, level, _row, _col = read_segment(
        sorted_rects, padded, before, places, present, weights, w_s, weights, 0, 0, WINDOW
    )
    grown = tl.exp(level)
    for i in tl.range(start, touched * (split + 1) // SPLITS, num_stages=STAGES):
        segment = packed >> 13
        if segment != before:
            tl.store(dw_rows + before, dw * grown, mask=present)
            dw = tl.zeros([BLOCK_Q], tl.float32)
            first, last, level, _row, _col = read_segment(
                sorted_rects, padded, segment, places, present, weights, w_s, weights, 0, 0, WINDOW
            )
            grown = tl.exp(level)
            before = segment
        offsets = tl.minimum(shape_offsets(shape, TILE_K), num_keys - 1 - key0)
        k = tl.load(k_cols + key0 * k_n + (offsets * k_n)[:, None])
        v = tl.load(v_cols + key0 * v_n + (offsets * v_n)[:, None])
        held = held_keys(shape, corner, packed, first, last, TILE_K)
        key0, shape, corner, packed = next_tile(listing, i + 1, num_tiles)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E) + base[:, None]
        p = tl.where(held, tl.exp2(scores), 0.0)
        ds = p * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        dw += tl.sum(ds, axis=1)
        dq = tl.dot((ds * (grown - 1)[:, None]).to(k.dtype), k, dq, input_precision=PRECISION)
    tl.store(dw_rows + before, dw * grown, mask=present)
    tl.store(Parts + flat[:, None] * D + d[None, :], dq * scale, mask=present[:, None])


@triton.jit
def add_parts_kernel(
    dQ, Parts, dq_b, dq_h, dq_n, heads, num_queries, D: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr
):
    """Add all shares of ``query_grad_kernel`` to dQ, in place."""
    pair = tl.program_id(1)
    pairs = tl.num_programs(1)
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    d = tl.arange(0, D)
    kept = (rows < num_queries)[:, None]
    target = dQ + (pair // heads).to(tl.int64) * dq_b + (pair % heads).to(tl.int64) * dq_h + rows * dq_n
    acc = tl.load(target[:, None] + d[None, :], mask=kept, other=0.0).to(tl.float32)
    for split in tl.static_range(SPLITS):
        flat = (split * pairs + pair).to(tl.int64) * num_queries + rows
        acc += tl.load(Parts + flat[:, None] * D + d[None, :], mask=kept, other=0.0)
    tl.store(target[:, None] + d[None, :], acc.to(dQ.dtype.element_ty), mask=kept)


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
    dv_b,
    dv_h,
    dv_n,
    w_b,
    w_h,
    w_n,
    w_s,
    heads,
    num_queries,
    padded,
    num_tiles,
    num_blocks,
    num_segments,
    scale,
    D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE_K: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to dK and dV of one tile of keys, in place, what the blocks of queries that touch it add.

    Operands:
        lists: (B, tiles, blocks): blocks that touch the tile come first. counts: (B, tiles): how many do.
    """
    tile = tl.program_id(0)
    pair = tl.program_id(1)
    batch = (pair // heads).to(tl.int64)
    head = (pair % heads).to(tl.int64)
    d = tl.arange(0, D)
    m = tl.arange(0, BLOCK_Q)
    touched = tl.load(counts + batch * num_tiles + tile)
    if touched > 0:
        key0, shape, corner, packed = next_tile(tiles, tile, num_tiles)
        segment = packed >> 13
        width = shape & 7
        keys = (key0 + shape_offsets(shape, TILE_K)).to(tl.int64)
        own = own_cells(shape, packed, TILE_K)[:, None]
        n = tl.arange(0, TILE_K)
        row = (corner >> 16) + (n >> width)
        cell = ((row << 16) | ((corner & 0xFFFF) + (n & ((1 << width) - 1))))[:, None]
        k = tl.load((K + batch * k_b + head * k_h + keys * k_n)[:, None] + d[None, :], mask=own, other=0.0)
        v = tl.load((V + batch * v_b + head * v_h + keys * v_n)[:, None] + d[None, :], mask=own, other=0.0)
        first_row = pair.to(tl.int64) * padded
        rects_here = sorted_rects + (batch * num_segments + segment) * 2 * padded
        weights_here = weight + batch * w_b + head * w_h + segment * w_s
        listing = lists + (batch * num_tiles + tile) * num_blocks
        dk = tl.zeros([TILE_K, D], tl.float32)
        dv = tl.zeros([TILE_K, D], tl.float32)
        block = tl.load(listing)
        for i in tl.range(0, touched, num_stages=STAGES):
            places = block * BLOCK_Q + m
            block = tl.load(listing + tl.minimum(i + 1, num_blocks - 1))
            q = tl.load(SortedQ + (first_row + places)[:, None] * D + d[None, :])
            g = tl.load(SorteddO + (first_row + places)[:, None] * D + d[None, :])
            base = -tl.load(SortedLse + first_row + places)[None, :] * LOG2E
            delta = tl.load(SortedDelta + first_row + places)[None, :]
            rows = tl.load(order + batch * padded + places)
            level = tl.load(weights_here + rows.to(tl.int64) * w_n, mask=rows < num_queries, other=0.0)
            factor = (tl.exp(level.to(tl.float32)) - 1)[None, :]
            held = held_by_cell(
                cell, tl.load(rects_here + places)[None, :], tl.load(rects_here + padded + places)[None, :]
            )
            scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2E) + base
            p = tl.where(held, tl.exp2(scores) * factor, 0.0)
            dv = tl.dot(p.to(g.dtype), g, dv, input_precision=PRECISION)
            ds = p * (tl.dot(v, tl.trans(g), input_precision=PRECISION) - delta)
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
        dk_rows = (dK + batch * dk_b + head * dk_h + keys * dk_n)[:, None] + d[None, :]
        dv_rows = (dV + batch * dv_b + head * dv_h + keys * dv_n)[:, None] + d[None, :]
        dk = tl.load(dk_rows, mask=own, other=0.0).to(tl.float32) + dk * scale
        dv = tl.load(dv_rows, mask=own, other=0.0).to(tl.float32) + dv
        tl.store(dk_rows, dk.to(dK.dtype.element_ty), mask=own)
        tl.store(dv_rows, dv.to(dV.dtype.element_ty), mask=own)
