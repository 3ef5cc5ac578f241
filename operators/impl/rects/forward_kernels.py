# mypy: disallow-incomplete-defs=False
"""The forward kernels: attention over a share of a block's tiles, and the merge of the shares.

One program handles BLOCK_Q queries of one head and a share of that block's tile list. It runs one loop over
the plain tiles, which no rect touches, and then one over the touched tiles, which adds the bias or the mask.

A softmax may shift its scores by any number that keeps the exponentials in range. Here the shift comes from
the first tile and stays, which leaves one multiply-add and one exponential per score. If the sum leaves the
safe range (scores that differ by 80 powers of two from those of the first tile), the program starts again
with the running maximum of FlashAttention (arXiv 2205.14135).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from operators.impl.rects.scores import (
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

SAFE = tl.constexpr(2.0**80)  # bounds the sum: terms of 2^-30 of it stay normal, and so do values up to 2^47


@triton.jit
def accumulate(scores, v, shift, total, acc, ONLINE: tl.constexpr, PRECISION: tl.constexpr):
    """Add one tile to the softmax's running sums. Scores are in powers of two, and shifted unless ONLINE."""
    if ONLINE:
        new = tl.maximum(shift, tl.max(scores, axis=1))
        safe = tl.where(new == float("-inf"), 0.0, new)  # without a key so far, -inf - -inf would be NaN
        old = tl.exp2(shift - safe)
        p = tl.exp2(scores - safe[:, None])
        total = total * old + tl.sum(p, axis=1)
        acc = acc * old[:, None]
        shift = new
    else:
        p = tl.exp2(scores)
        total += tl.sum(p, axis=1)
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    return shift, total, acc


@triton.jit
def sweep(
    q,
    shift,
    k_rows,
    v_cols,
    k_n,
    v_n,
    listing,
    plain_from,
    plain_to,
    touched_from,
    touched_to,
    sorted_rects,
    padded,
    places,
    present,
    weights,
    w_s,
    centers,
    c_s,
    c_d,
    scale_log2,
    decay,
    limit,
    num_keys,
    num_tiles,
    KIND: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE_K: tl.constexpr,
    ONLINE: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    TOUCHED_STAGES: tl.constexpr,
):
    """Run both loops over a share of the list.

    Returns:
        The shift (M,), the sum of exponentials (M,), the values weighted by exponentials (M, D), and whether
        any rect met a tile (M,) int32.
    """
    n = tl.arange(0, TILE_K)
    in_head = tl.arange(0, BLOCK_D) < HEAD
    base = tl.zeros([BLOCK_Q], tl.float32) if ONLINE else -shift
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    seen = tl.zeros([BLOCK_Q], tl.int32)
    if KIND != NONE:
        # Tiles are in the order of segments, and the queries' values are loaded where a segment begins. For
        # the first tile that is here, so that the second loop does not begin with a wait.
        first_key, first_shape, corner, packed = next_tile(listing, touched_from, num_tiles)
        before = packed >> 13
        first, last, level, center_row, center_col = read_segment(
            sorted_rects, padded, before, places, present, weights, w_s, centers, c_s, c_d, KIND
        )
    if KIND != MASK:
        key0, shape = next_plain(listing, plain_from, num_tiles, KIND, TILE_K)
        for i in tl.range(plain_from, plain_to, num_stages=STAGES):
            if KIND == NONE:
                offsets = n
            else:
                offsets = shape_offsets(shape, TILE_K)
            k_tile = k_rows + key0 * k_n + (offsets * k_n)[None, :]
            v_tile = v_cols + key0 * v_n + (offsets * v_n)[:, None]
            key0, shape = next_plain(listing, i + 1, num_tiles, KIND, TILE_K)
            if HEAD == BLOCK_D:
                k = tl.load(k_tile)
                v = tl.load(v_tile)
            else:
                k = tl.load(k_tile, mask=in_head[:, None], other=0.0)
                v = tl.load(v_tile, mask=in_head[None, :], other=0.0)
            scores = tl.dot(q, k, input_precision=PRECISION) * scale_log2 + base[:, None]
            shift, total, acc = accumulate(scores, v, shift, total, acc, ONLINE, PRECISION)
    if KIND == NONE:
        for _tail in range(touched_from, touched_to):  # the keys after the last whole tile
            key0 = (num_tiles - 1) * TILE_K
            real = key0 + n < num_keys
            k_tile = k_rows + key0 * k_n + (n * k_n)[None, :]
            v_tile = v_cols + key0 * v_n + (n * v_n)[:, None]
            k = tl.load(k_tile, mask=real[None, :] & in_head[:, None], other=0.0)
            v = tl.load(v_tile, mask=real[:, None] & in_head[None, :], other=0.0)
            scores = tl.dot(q, k, input_precision=PRECISION) * scale_log2 + base[:, None]
            scores = tl.where(real[None, :], scores, float("-inf"))
            shift, total, acc = accumulate(scores, v, shift, total, acc, ONLINE, PRECISION)
    else:
        key0 = first_key
        shape = first_shape
        for i in tl.range(touched_from, touched_to, num_stages=TOUCHED_STAGES):
            segment = packed >> 13
            if segment != before:
                first, last, level, center_row, center_col = read_segment(
                    sorted_rects, padded, segment, places, present, weights, w_s, centers, c_s, c_d, KIND
                )
                before = segment
            # Beyond its own cells a cut tile reads other keys. They are valid memory, and masked below.
            offsets = tl.minimum(shape_offsets(shape, TILE_K), num_keys - 1 - key0)
            k_tile = k_rows + key0 * k_n + (offsets * k_n)[None, :]
            v_tile = v_cols + key0 * v_n + (offsets * v_n)[:, None]
            if HEAD == BLOCK_D:
                k = tl.load(k_tile)
                v = tl.load(v_tile)
            else:
                k = tl.load(k_tile, mask=in_head[:, None], other=0.0)
                v = tl.load(v_tile, mask=in_head[None, :], other=0.0)
            bias, _held, met, _slope = tile_bias(
                shape, corner, first, last, level, center_row, center_col, base, decay, limit, KIND, TILE_K
            )
            seen |= met.to(tl.int32)
            own = own_cells(shape, packed, TILE_K)
            cut = is_cut(packed)
            key0, shape, corner, packed = next_tile(listing, i + 1, num_tiles)
            scores = tl.dot(q, k, input_precision=PRECISION) * scale_log2 + bias
            if cut:
                scores = tl.where(own[None, :], scores, float("-inf"))
            shift, total, acc = accumulate(scores, v, shift, total, acc, ONLINE, PRECISION)
    return shift, total, acc, seen


@triton.jit
def forward_kernel(
    Q,
    K,
    V,
    Out,
    Rest,
    Lse,
    order,
    sorted_rects,
    weight,
    centers,
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
    scale_log2,
    decay,
    limit,
    KIND: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE_K: tl.constexpr,
    SPLITS: tl.constexpr,
    KEEP: tl.constexpr,
    ONLINE: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    TOUCHED_STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Attend with one block of queries to one share of its tiles.

    Operands:
        Out: (splits, B, H, Q, D) with the ``o_*`` strides: the result over the share, 0 where it has no key.
        Lse: (splits, B, H, Q) float32: log2 of the share's sum of exponentials. Without a key it is -inf. If
            there is only one share it is +inf instead, so that the backward pass computes probabilities of 0.
        Rest: (B, H, Q, D) of Out's dtype, contiguous: what rounding took from the result. Written if KEEP and
            if there is only one share.
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
    k_rows = K + batch * k_b + head * k_h + d[:, None]
    v_cols = V + batch * v_b + head * v_h + d[None, :]
    if EARLY:
        gdc_launch_dependents()
    if not ONLINE:
        # Any keys can give the shift. These, near the start of the share, do not depend on the lists.
        keys = tl.minimum(num_tiles * split // SPLITS * TILE_K + n, num_keys - 1).to(tl.int64)
        some_k = tl.load(k_rows + (keys * k_n)[None, :], mask=in_head[:, None], other=0.0)
    if EARLY:
        gdc_wait()
    listing = lists + (batch * tl.num_programs(0) + block) * num_tiles * 4
    if KIND == NONE:
        rows = places
        touched = tl.cast(num_keys % TILE_K != 0, tl.int32)
        plain0 = 0
    else:
        rows = tl.load(order + batch * padded + places)
        touched = tl.load(counts + batch * tl.num_programs(0) + block)
        plain0 = touched
    plain = 0 if KIND == MASK else num_tiles - touched
    present = rows < num_queries
    rows = rows.to(tl.int64)
    q_rows = Q + batch * q_b + head * q_h + rows * q_n
    q = tl.load(q_rows[:, None] + d[None, :], mask=present[:, None] & in_head[None, :], other=0.0)
    sorted_rects += batch * num_segments * 2 * padded
    weights = weight + batch * w_b + head * w_h + rows * w_n
    middles = centers + batch * c_b + rows * c_n
    plain_from = plain0 + plain * split // SPLITS
    plain_to = plain0 + plain * (split + 1) // SPLITS
    touched_from = touched * split // SPLITS
    touched_to = touched * (split + 1) // SPLITS

    if ONLINE:
        shift = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    else:
        shift = tl.max(tl.dot(q, some_k, input_precision=PRECISION), axis=1) * scale_log2
    shift, total, acc, seen = sweep(
        q, shift, k_rows, v_cols, k_n, v_n, listing, plain_from, plain_to, touched_from, touched_to,
        sorted_rects, padded, places, present, weights, w_s, middles, c_s, c_d,
        scale_log2, decay, limit, num_keys, num_tiles,
        KIND, HEAD, BLOCK_D, BLOCK_Q, TILE_K, ONLINE, PRECISION, STAGES, TOUCHED_STAGES,
    )  # fmt: skip
    if not ONLINE:
        unsafe = (total > 1 / SAFE) & (total < SAFE) == 0
        if KIND == MASK:
            unsafe = unsafe & (seen != 0)  # a query without a key in this share has a sum of 0
        some = plain_from + touched_from < plain_to + touched_to
        if (tl.max(unsafe.to(tl.int32), 0) > 0) & some:
            # The old shift may lie far above all scores: a bias or a mask may rule out the keys that gave it.
            shift = tl.full([BLOCK_Q], float("-inf"), tl.float32)
            shift, total, acc, seen = sweep(
                q, shift, k_rows, v_cols, k_n, v_n, listing, plain_from, plain_to, touched_from, touched_to,
                sorted_rects, padded, places, present, weights, w_s, middles, c_s, c_d,
                scale_log2, decay, limit, num_keys, num_tiles,
                KIND, HEAD, BLOCK_D, BLOCK_Q, TILE_K, True, PRECISION, STAGES, TOUCHED_STAGES,
            )  # fmt: skip
    empty = total == 0
    acc /= tl.where(empty, 1.0, total)[:, None]
    nothing = float("inf") if SPLITS == 1 else float("-inf")
    lse = tl.where(empty, nothing, shift + tl.log2(total))
    o_rows = Out + split * o_split + batch * o_b + head * o_h + rows * o_n
    rounded = acc.to(Out.dtype.element_ty)
    stored = present[:, None] & in_head[None, :]
    tl.store(o_rows[:, None] + d[None, :] * o_d, rounded, mask=stored)
    flat = (split * batches * heads + pair).to(tl.int64) * num_queries + rows
    tl.store(Lse + flat, lse, mask=present)
    if KEEP and SPLITS == 1:
        rest = (acc - rounded.to(tl.float32)).to(Rest.dtype.element_ty)
        tl.store(Rest + flat[:, None] * HEAD + d[None, :], rest, mask=stored)


@triton.jit
def merge_kernel(
    Parts,
    PartLse,
    Out,
    Rest,
    Lse,
    o_b,
    o_h,
    o_n,
    o_d,
    heads,
    num_queries,
    HEAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
    KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Merge the shares of every query by their log-sum-exps, always in the same order.

    Operands:
        Parts: (splits, B * H, Q, D) float32, contiguous.
        PartLse: (splits, B * H, Q) float32, in powers of two.
        Out: (B, H, Q, D) with its strides.
        Rest: (B * H, Q, D) of Out's dtype, contiguous: what rounding took from Out. Written if KEEP.
        Lse: (B * H, Q) float32; +inf for a query without any key, whose output is 0.
    """
    if EARLY:
        gdc_wait()
    pair = tl.program_id(1)
    pairs = tl.num_programs(1)
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    present = rows < num_queries
    kept = present[:, None] & (d < HEAD)[None, :]
    best = tl.full([ROWS], float("-inf"), tl.float32)
    for split in tl.static_range(SPLITS):
        flat = (split * pairs + pair) * num_queries + rows
        best = tl.maximum(best, tl.load(PartLse + flat, mask=present, other=float("-inf")))
    empty = best == float("-inf")
    best = tl.where(empty, 0.0, best)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for split in tl.static_range(SPLITS):
        flat = (split * pairs + pair) * num_queries + rows
        part = tl.exp2(tl.load(PartLse + flat, mask=present, other=float("-inf")) - best)
        total += part
        acc += part[:, None] * tl.load(Parts + flat[:, None] * HEAD + d[None, :], mask=kept, other=0.0)
    acc /= tl.where(empty, 1.0, total)[:, None]
    o_rows = Out + (pair // heads).to(tl.int64) * o_b + (pair % heads).to(tl.int64) * o_h + rows * o_n
    rounded = acc.to(Out.dtype.element_ty)
    tl.store(o_rows[:, None] + d[None, :] * o_d, rounded, mask=kept)
    flat = pair.to(tl.int64) * num_queries + rows
    if KEEP:
        rest = (acc - rounded.to(tl.float32)).to(Rest.dtype.element_ty)
        tl.store(Rest + flat[:, None] * HEAD + d[None, :], rest, mask=kept)
    tl.store(Lse + flat, tl.where(empty, float("inf"), best + tl.log2(total)), mask=present)
