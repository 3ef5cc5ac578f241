# mypy: disallow-incomplete-defs=False
"""Gradients of queries and weights, and the preparation of both backward passes.

Notation of FlashAttention-2 (arXiv 2307.08691): P the probabilities, dP = dO V^T, D = rowsum(dO * O),
dS = P * (dP - D), dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO. The gradient of a rect's weight is the sum
of dS times the bias's slope over the rect. One pass runs over blocks of queries, the other over tiles of
keys. Both recompute P from the saved log-sum-exp. There are no atomics, and every sum has a fixed order, so
gradients have the same bits on every run.
"""

import triton
import triton.language as tl

from operators.impl.rects.scores import (
    GAUSSIAN,
    MASK,
    NONE,
    is_cut,
    next_plain,
    next_tile,
    own_cells,
    read_segment,
    shape_offsets,
    tile_bias,
)


@triton.jit
def prepare_kernel(
    Q,
    Out,
    Rest,
    dOut,
    Lse,
    order,
    SortedQ,
    SorteddO,
    SortedLse,
    SortedDelta,
    q_b,
    q_h,
    q_n,
    o_b,
    o_h,
    o_n,
    o_d,
    g_b,
    g_h,
    g_n,
    heads,
    num_queries,
    padded,
    KIND: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEPT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Copy queries and gradients in sorted order, and compute D = rowsum(dO * O).

    Operands:
        Out: (B, H, Q, D) with its strides, of Q's dtype.
        Rest: (B * H, Q, D) of that dtype, contiguous, if KEPT: what rounding took from Out. Without it, that
            would be the largest error of the weights' gradient.
        SortedQ, SorteddO: (B * H, padded, D); padding is 0.
        SortedLse, SortedDelta: (B * H, padded) float32; padding is +inf and 0, so that probabilities are 0.
    """
    pair = tl.program_id(1)
    batch = (pair // heads).to(tl.int64)
    head = (pair % heads).to(tl.int64)
    places = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = places < padded
    d = tl.arange(0, BLOCK_D)
    if KIND == NONE:
        rows = places
    else:
        rows = tl.load(order + batch * padded + places, mask=here, other=num_queries)
    present = here & (rows < num_queries)
    rows = rows.to(tl.int64)
    kept = present[:, None] & (d < HEAD)[None, :]
    q = tl.load((Q + batch * q_b + head * q_h + rows * q_n)[:, None] + d[None, :], mask=kept, other=0.0)
    o_rows = Out + batch * o_b + head * o_h + rows * o_n
    o = tl.load(o_rows[:, None] + d[None, :] * o_d, mask=kept, other=0.0).to(tl.float32)
    if KEPT:
        rests = Rest + (pair.to(tl.int64) * num_queries + rows)[:, None] * HEAD
        o += tl.load(rests + d[None, :], mask=kept, other=0.0).to(tl.float32)
    g = tl.load((dOut + batch * g_b + head * g_h + rows * g_n)[:, None] + d[None, :], mask=kept, other=0.0)
    lse = tl.load(Lse + pair.to(tl.int64) * num_queries + rows, mask=present, other=float("inf"))
    delta = tl.sum(o * g.to(tl.float32), axis=1)
    flat = pair.to(tl.int64) * padded + places
    stored = here[:, None] & (d < HEAD)[None, :]
    tl.store(SortedQ + flat[:, None] * HEAD + d[None, :], q, mask=stored)
    tl.store(SorteddO + flat[:, None] * HEAD + d[None, :], g, mask=stored)
    tl.store(SortedLse + flat, lse, mask=here)
    tl.store(SortedDelta + flat, delta, mask=here)


@triton.jit
def query_step(q, g, k_rows, v_rows, base, delta, dq, scale_log2, PRECISION: tl.constexpr):
    """Return dS, and dQ before its scale, with one tile of keys (N, D) added; ``base`` is bias - LSE."""
    p = tl.exp2(tl.dot(q, tl.trans(k_rows), input_precision=PRECISION) * scale_log2 + base)
    dp = tl.dot(g, tl.trans(v_rows), input_precision=PRECISION)
    ds = p * (dp - delta)
    return ds, tl.dot(ds.to(q.dtype), k_rows, dq, input_precision=PRECISION)


@triton.jit
def query_grad_kernel(
    SortedQ,
    SorteddO,
    SortedLse,
    SortedDelta,
    K,
    V,
    dQ,
    dWeight,
    order,
    sorted_rects,
    weight,
    centers,
    lists,
    counts,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    o_split,
    o_b,
    o_h,
    o_n,
    o_d,
    w_b,
    w_h,
    w_n,
    w_s,
    c_b,
    c_n,
    c_s,
    c_d,
    batches,
    heads,
    num_queries,
    padded,
    num_keys,
    num_tiles,
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
    SPLITS: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    TOUCHED_STAGES: tl.constexpr,
):
    """Compute dQ, and the gradient of the weights, of one block of queries over a share of its tiles.

    Operands:
        dQ: (splits, B, H, Q, D) with the ``o_*`` strides.
        dWeight: (splits, B, H, Q, S) float32, filled with zeros by the caller.
    """
    block = tl.program_id(0)
    split = tl.program_id(1)
    pair = tl.program_id(2)
    batch = (pair // heads).to(tl.int64)
    head = (pair % heads).to(tl.int64)
    places = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, TILE_K)
    in_head = d < HEAD
    listing = lists + (batch * tl.num_programs(0) + block) * num_tiles * 4
    if KIND == NONE:
        rows = places
        touched = tl.cast(num_keys % TILE_K != 0, tl.int32)
        plain0 = 0
    else:
        rows = tl.load(order + batch * padded + places)
        touched = tl.load(counts + batch * tl.num_programs(0) + block)
        plain0 = touched
    plain = num_tiles - touched
    present = rows < num_queries
    rows = rows.to(tl.int64)
    flat = pair.to(tl.int64) * padded + places
    q = tl.load(SortedQ + flat[:, None] * HEAD + d[None, :], mask=in_head[None, :], other=0.0)
    g = tl.load(SorteddO + flat[:, None] * HEAD + d[None, :], mask=in_head[None, :], other=0.0)
    base = -tl.load(SortedLse + flat)
    delta = tl.load(SortedDelta + flat)[:, None]
    k_cols = K + batch * k_b + head * k_h + d[None, :]
    v_cols = V + batch * v_b + head * v_h + d[None, :]
    sorted_rects += batch * num_segments * 2 * padded
    weights = weight + batch * w_b + head * w_h + rows * w_n
    middles = centers + batch * c_b + rows * c_n
    flat_rows = (split * batches * heads + pair).to(tl.int64) * num_queries + rows
    dw_rows = dWeight + flat_rows * num_segments
    dq = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    if KIND != MASK:
        plain_from = plain0 + plain * split // SPLITS
        plain_to = plain0 + plain * (split + 1) // SPLITS
        key0, shape = next_plain(listing, plain_from, num_tiles, KIND, TILE_K)
        for i in tl.range(plain_from, plain_to, num_stages=STAGES):
            if KIND == NONE:
                offsets = n
            else:
                offsets = shape_offsets(shape, TILE_K)
            k_tile = k_cols + key0 * k_n + (offsets * k_n)[:, None]
            v_tile = v_cols + key0 * v_n + (offsets * v_n)[:, None]
            key0, shape = next_plain(listing, i + 1, num_tiles, KIND, TILE_K)
            if HEAD == BLOCK_D:
                k = tl.load(k_tile)
                v = tl.load(v_tile)
            else:
                k = tl.load(k_tile, mask=in_head[None, :], other=0.0)
                v = tl.load(v_tile, mask=in_head[None, :], other=0.0)
            _ds, dq = query_step(q, g, k, v, base[:, None], delta, dq, scale_log2, PRECISION)
    touched_from = touched * split // SPLITS
    touched_to = touched * (split + 1) // SPLITS
    if KIND == NONE:
        for _tail in range(touched_from, touched_to):  # the keys after the last whole tile
            key0 = (num_tiles - 1) * TILE_K
            real = key0 + n < num_keys
            kept = real[:, None] & in_head[None, :]
            k = tl.load(k_cols + key0 * k_n + (n * k_n)[:, None], mask=kept, other=0.0)
            v = tl.load(v_cols + key0 * v_n + (n * v_n)[:, None], mask=kept, other=0.0)
            bias = tl.where(real[None, :], base[:, None], float("-inf"))
            _ds, dq = query_step(q, g, k, v, bias, delta, dq, scale_log2, PRECISION)
    else:
        # Tiles are in the order of segments: the sum of a segment is complete where the next one begins.
        before = 0
        dw = tl.zeros([BLOCK_Q], tl.float32)
        first, last, level, center_row, center_col = read_segment(
            sorted_rects, padded, 0, places, present, weights, w_s, middles, c_s, c_d, KIND
        )
        key0, shape, corner, packed = next_tile(listing, touched_from, num_tiles)
        for i in tl.range(touched_from, touched_to, num_stages=TOUCHED_STAGES):
            segment = packed >> 13
            if segment != before:
                if NEED_WEIGHT:
                    tl.store(dw_rows + before, dw, mask=present)
                    dw = tl.zeros([BLOCK_Q], tl.float32)
                first, last, level, center_row, center_col = read_segment(
                    sorted_rects, padded, segment, places, present, weights, w_s, middles, c_s, c_d, KIND
                )
                before = segment
            offsets = tl.minimum(shape_offsets(shape, TILE_K), num_keys - 1 - key0)
            k_tile = k_cols + key0 * k_n + (offsets * k_n)[:, None]
            v_tile = v_cols + key0 * v_n + (offsets * v_n)[:, None]
            if HEAD == BLOCK_D:
                k = tl.load(k_tile)
                v = tl.load(v_tile)
            else:
                k = tl.load(k_tile, mask=in_head[None, :], other=0.0)
                v = tl.load(v_tile, mask=in_head[None, :], other=0.0)
            bias, held, _met, slope = tile_bias(
                shape, corner, first, last, level, center_row, center_col, base, decay, limit, KIND, TILE_K
            )
            if is_cut(packed):
                bias = tl.where(own_cells(shape, packed, TILE_K)[None, :], bias, float("-inf"))
            key0, shape, corner, packed = next_tile(listing, i + 1, num_tiles)
            ds, dq = query_step(q, g, k, v, bias, delta, dq, scale_log2, PRECISION)
            if NEED_WEIGHT:
                share = ds * slope if KIND == GAUSSIAN else tl.where(held, ds, 0.0)
                dw += tl.sum(share, axis=1)
        if NEED_WEIGHT:
            tl.store(dw_rows + before, dw, mask=present)
    o_rows = dQ + split * o_split + batch * o_b + head * o_h + rows * o_n
    tl.store(
        o_rows[:, None] + d[None, :] * o_d,
        (dq * scale).to(dQ.dtype.element_ty),
        mask=present[:, None] & in_head[None, :],
    )
