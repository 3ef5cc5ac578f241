# mypy: disallow-incomplete-defs=False
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


_GUARD = tl.constexpr(0x80008000)  # the top bit of each half of 32 bits


@triton.jit
def shape_offsets(shape, TILE_K: tl.constexpr):
    """Return where the keys of a tile lie after its first: row by row. shape: columns << 3 | log2 width."""
    n = tl.arange(0, TILE_K)
    width = shape & 7
    return (n >> width) * (shape >> 3) + (n & ((1 << width) - 1))


@triton.jit
def tile_cells(tiles, tile, TILE_K: tl.constexpr):
    """Unpack a tile.

    Returns:
        first key; of its keys: (TILE_K,) distance from the first, row, column, and whether they are its own;
        its segment, first row, first column and log2 width.
    """
    n = tl.arange(0, TILE_K)
    entry = tiles + tile * 8
    segment = tl.load(entry + 1)
    row0 = tl.load(entry + 2)
    col0 = tl.load(entry + 3)
    width = tl.load(entry + 6)
    row = row0 + (n >> width)
    col = col0 + (n & ((1 << width) - 1))
    real = (row < tl.load(entry + 4)) & (col < tl.load(entry + 5))
    return (
        tl.load(entry),
        shape_offsets(tl.load(entry + 7), TILE_K),
        row,
        col,
        real,
        segment,
        row0,
        col0,
        width,
    )


@triton.jit
def held_by_cell(cell, first, last):
    """Say which cells lie in which rects: two subtractions a score.

    Cells are packed as row << 16 | column, either below 2^15.

    The guard bit of each half survives a subtraction exactly where the half does not borrow.
    """
    cell = cell.to(tl.uint32)
    return (
        ((cell | _GUARD) - first.to(tl.uint32)) & ((last.to(tl.uint32) | _GUARD) - cell) & _GUARD
    ) == _GUARD


@triton.jit
def held_by_bits(row0, col0, width, first, last, TILE_K: tl.constexpr):
    """Say which keys of a tile lie in which rects, (M, TILE_K): one bit test a score.

    Within a tile a rect is a run of columns, repeated over a run of rows: TILE_K bits per query, of which a
    thread of the matrix unit's layout holds those of its two rows only.

    Operands:
        row0, col0, width: first cell and log2 width of the tile.
        first, last: (M,) packed rects.
    """
    every = tl.full([1], 0xFFFFFFFF, tl.uint32)
    top = tl.maximum((first >> 16) - row0, 0)
    bottom = tl.minimum((last >> 16) - row0, (TILE_K >> width) - 1)
    left = tl.maximum((first & 0xFFFF) - col0, 0)
    right = tl.minimum((last & 0xFFFF) - col0, (1 << width) - 1)
    some = (top <= bottom) & (left <= right)
    run = (every << tl.minimum(left, 31).to(tl.uint32)) & (every >> (31 - tl.maximum(right, 0)).to(tl.uint32))
    # A one at every 2^width-th bit: times that, the run stands in every row.
    repeat = tl.where(width == 2, 0x11111111, tl.where(width == 1, 0x55555555, 1))
    repeat = tl.where(width == 4, 0x00010001, tl.where(width == 3, 0x01010101, repeat))
    run = tl.where(some, run * repeat.to(tl.uint32), 0)
    start = tl.minimum(top << width, TILE_K - 1)
    stop = tl.maximum(((bottom + 1) << width) - 1, 0)
    n = tl.arange(0, TILE_K)
    low = (
        run
        & (every << tl.minimum(start, 31).to(tl.uint32))
        & (every >> (31 - tl.minimum(stop, 31)).to(tl.uint32))
    )
    low = tl.where(start < 32, low, 0)[:, None]
    half = low
    if TILE_K == 64:
        high = run & (every << tl.maximum(start - 32, 0).to(tl.uint32))
        high = high & (every >> (63 - tl.maximum(stop, 32)).to(tl.uint32))
        half = tl.where((n < 32)[None, :], low, tl.where(stop >= 32, high, 0)[:, None])
    # In two steps: a thread holds every 8th key, so the second is by a constant the compiler sees.
    return (((half >> (n & 7)[None, :].to(tl.uint32)) >> (n & 24)[None, :].to(tl.uint32)) & 1) != 0


@triton.jit
def gaussian_and_slope(held, weight, row, col, center_row, center_col, decay, limit):
    """Return the bias (in powers of two) and its derivative by the weight (both in logits).

    Operands:
        held: whether a key lies in a query's rect.
        weight: in logits.
        row, col: cells of the keys.
        center_row, center_col: of the queries.
        decay: ``log2(e) / (2 sigma^2)``.
        limit: where the bias is clamped, in logits.
    """
    down = row.to(tl.float32) - center_row
    right = col.to(tl.float32) - center_col
    fall = tl.exp2(-decay * (down * down + right * right))
    raw = weight * fall
    bias = tl.where(held, tl.minimum(tl.maximum(raw, -limit), limit) * LOG2E, 0.0)
    # Up to and including the limit, as the gradient of torch.clamp.
    return bias, tl.where(held & (tl.abs(raw) <= limit), fall, 0.0)


@triton.jit
def tile_bias(
    row,
    col,
    row0,
    col0,
    width,
    base,
    sorted_rects,
    padded,
    segment,
    places,
    present,
    weights,
    w_s,
    centers,
    c_s,
    c_d,
    decay,
    limit,
    KIND: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """Return what is added to the scores of a tile, which keys the rects hold, and a gaussian's slope.

    Operands:
        row, col: cells of the keys. row0, col0, width: of the tile.
        base: (M, 1) added everywhere, so that bias and shift together cost one select a score.
        sorted_rects: (S, 2, padded) of the batch item.
        places: (M,) of the queries in sorted order. present: which of them exist.
        weights, centers: (M,) pointers to the queries' values in segment 0.

    Returns:
        (M, TILE_K) in powers of two; (M, TILE_K) bool; derivative of a gaussian bias by the weight.
    """
    rects = sorted_rects + segment * 2 * padded + places
    first = tl.load(rects)
    last = tl.load(rects + padded)
    held = held_by_bits(row0, col0, width, first, last, TILE_K)
    slope = 0.0
    if KIND == MASK:
        bias = tl.where(held, base, float("-inf"))
    else:
        weight = tl.load(weights + segment * w_s, mask=present, other=0.0).to(tl.float32)[:, None]
        if KIND == GAUSSIAN:
            center_row = tl.load(centers + segment * c_s, mask=present, other=0.0).to(tl.float32)[:, None]
            center_col = tl.load(centers + segment * c_s + c_d, mask=present, other=0.0).to(tl.float32)[
                :, None
            ]
            bias, slope = gaussian_and_slope(
                held, weight, row[None, :], col[None, :], center_row, center_col, decay, limit
            )
            bias += base
        else:
            bias = tl.where(held, weight * LOG2E + base, base)
    return bias, held, slope
