"""What is added to the scores of one tile: shared by the forward and both backward kernels.

All exponentials are to the base 2: scores, biases and log-sum-exps within the kernels are logits times
``log2(e)``. Vectors over queries and over keys come shaped so that they broadcast: (M, 1) and (1, N) in the
forward, (1, M) and (N, 1) where the scores are transposed.
"""

import triton
import triton.language as tl

NONE = tl.constexpr(0)
WINDOW = tl.constexpr(1)
GAUSSIAN = tl.constexpr(2)
MASK = tl.constexpr(3)

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def tile_place(tiles, segments, tile):
    """Return first key, segment, first key counted from the segment's start, keys and width of the segment."""
    key0 = tl.load(tiles + tile * 2)
    segment = tl.load(tiles + tile * 2 + 1)
    local0 = key0 - tl.load(segments + segment * 4)
    return key0, segment, local0, tl.load(segments + segment * 4 + 1), tl.load(segments + segment * 4 + 2)


@triton.jit
def held_and_bias(
    row,
    col,
    sorted_rects,
    padded,
    segment,
    places,
    weights,
    w_s,
    centers,
    c_s,
    c_d,
    present,
    decay,
    limit,
    KIND: tl.constexpr,
):
    """Say which keys of a tile lie in the rects of some queries, and what is added to their scores.

    Args:
        row, col: cells of the keys.
        sorted_rects: (S, 4, padded) of the batch item.
        places: of the queries in sorted order.
        weights, centers: pointers to the queries' values in segment 0.
        present: which of the queries exist.
        decay: ``log2(e) / (2 sigma^2)``, for a gaussian.
        limit: where a gaussian is clamped, in logits.

    Returns:
        held: bool; bias: in powers of two; slope: derivative of the bias in logits by the weight.
    """
    rects = sorted_rects + segment * 4 * padded + places
    row0 = tl.load(rects)
    row1 = tl.load(rects + padded)
    col0 = tl.load(rects + 2 * padded)
    col1 = tl.load(rects + 3 * padded)
    held = (row >= row0) & (row <= row1) & (col >= col0) & (col <= col1)
    if KIND == MASK:
        return held, 0.0, 0.0
    weight = tl.load(weights + segment * w_s, mask=present, other=0.0).to(tl.float32)
    if KIND == WINDOW:
        return held, tl.where(held, weight * LOG2E, 0.0), tl.where(held, 1.0, 0.0)
    down = row.to(tl.float32) - tl.load(centers + segment * c_s, mask=present, other=0.0).to(tl.float32)
    right = col.to(tl.float32) - tl.load(centers + segment * c_s + c_d, mask=present, other=0.0).to(
        tl.float32
    )
    fall = tl.exp2(-decay * (down * down + right * right))
    raw = weight * fall
    bias = tl.where(held, tl.minimum(tl.maximum(raw, -limit), limit) * LOG2E, 0.0)
    # Up to and including the limit, as the gradient of torch.clamp.
    slope = tl.where(held & (tl.abs(raw) <= limit), fall, 0.0)
    return held, bias, slope
