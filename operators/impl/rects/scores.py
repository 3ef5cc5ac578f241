# mypy: disallow-incomplete-defs=False
"""What is added to the scores of one tile. The forward kernel and both backward kernels use these functions.

All exponentials are to the base 2: in the kernels, scores, biases and log-sum-exps are logits times
``log2(e)``. Vectors over queries and keys have shapes that broadcast: (M, 1) and (1, N) in the forward
kernel, (1, M) and (N, 1) where the scores are transposed.
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
    """Return the offsets of a tile's keys from its first, row by row. shape: columns << 3 | log2 width."""
    n = tl.arange(0, TILE_K)
    width = shape & 7
    return (n >> width) * (shape >> 3) + (n & ((1 << width) - 1))


@triton.jit
def next_plain(listing, i, num_tiles, KIND: tl.constexpr, TILE_K: tl.constexpr):
    """Return the first key and the shape of the i-th entry of a list; of its last entry beyond the end.

    Loops read the entry of their next turn ahead, into registers. Otherwise the address of a load would
    depend on another load of the same turn, which Triton turns into a copy to shared memory. Waiting for that
    copy would empty the pipeline of keys and values every turn.
    """
    if KIND == NONE:
        return i * TILE_K, 0
    entry = listing + tl.minimum(i, num_tiles - 1) * 4
    return tl.load(entry), tl.load(entry + 1)


@triton.jit
def next_tile(listing, i, num_tiles):
    """Return the i-th entry of a list, or its last: first key, shape, corner, extent (``lists.cut_grid``)."""
    entry = listing + tl.minimum(i, num_tiles - 1) * 4
    return tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)


@triton.jit
def is_cut(packed):
    """Whether a tile reaches beyond its own cells. packed: the extent in its entry."""
    return (packed >> 12 & 1) != 0


@triton.jit
def own_cells(shape, packed, TILE_K: tl.constexpr):
    """Whether each key of a tile is one of its own, (TILE_K,) bool."""
    n = tl.arange(0, TILE_K)
    width = shape & 7
    return ((n >> width) < (packed >> 6 & 63)) & ((n & ((1 << width) - 1)) < (packed & 63))


@triton.jit
def cell_of_keys(shape, corner, TILE_K: tl.constexpr):
    """Return the row and the column of the keys of a tile, (TILE_K,) each."""
    n = tl.arange(0, TILE_K)
    width = shape & 7
    return (corner >> 16) + (n >> width), (corner & 0xFFFF) + (n & ((1 << width) - 1))


@triton.jit
def held_by_cell(cell, first, last):
    """Whether each cell lies in each rect, by two subtractions per score.

    Cells are packed as row << 16 | column, with both below 2^15. After a subtraction the guard bit of a half
    is set exactly if that half did not borrow.
    """
    cell = cell.to(tl.uint32)
    return (
        ((cell | _GUARD) - first.to(tl.uint32)) & ((last.to(tl.uint32) | _GUARD) - cell) & _GUARD
    ) == _GUARD


@triton.jit
def held_by_bits(corner, width, first, last, TILE_K: tl.constexpr):
    """Return which keys of a tile lie in which rects, (M, TILE_K), and which rects meet the tile, (M,).

    This takes one bit test per score. Within a tile a rect is a run of columns, repeated over a run of rows:
    TILE_K bits per query. In the layout of the matrix unit a thread holds the bits of its two rows only.

    Operands:
        corner: first row << 16 | first column of the tile. width: log2 of its columns.
        first, last: (M,) packed rects.
    """
    every = tl.full([1], 0xFFFFFFFF, tl.uint32)
    top = tl.maximum((first >> 16) - (corner >> 16), 0)
    bottom = tl.minimum((last >> 16) - (corner >> 16), (TILE_K >> width) - 1)
    left = tl.maximum((first & 0xFFFF) - (corner & 0xFFFF), 0)
    right = tl.minimum((last & 0xFFFF) - (corner & 0xFFFF), (1 << width) - 1)
    some = (top <= bottom) & (left <= right)
    # Where ``some`` is false a shift may exceed the word, which is undefined: it is cut to the word's size.
    run = (every << (left & 31).to(tl.uint32)) & (every >> (31 - right & 31).to(tl.uint32))
    # A one at every 2^width-th bit: multiplication by it repeats the run in every row.
    repeat = tl.where(width == 2, 0x11111111, tl.where(width == 1, 0x55555555, 1))
    repeat = tl.where(width == 4, 0x00010001, tl.where(width == 3, 0x01010101, repeat))
    run = tl.where(some, run * repeat.to(tl.uint32), 0)
    full = tl.full([1], 0xFFFFFFFFFFFFFFFF, tl.uint64)
    start = (top << width) & 63
    stop = ((bottom + 1) << width) - 1 & 63
    rows = (full << start.to(tl.uint64)) & (full >> (63 - stop).to(tl.uint64))
    n = tl.arange(0, TILE_K)
    half = (run & rows.to(tl.uint32))[:, None]
    if TILE_K == 64:
        half = tl.where((n < 32)[None, :], half, (run & (rows >> 32).to(tl.uint32))[:, None])
    # Two shifts: a thread holds every 8th key, so the second one is by a compile-time constant.
    held = (((half >> (n & 7)[None, :].to(tl.uint32)) >> (n & 24)[None, :].to(tl.uint32)) & 1) != 0
    return held, some


@triton.jit
def gaussian_and_slope(held, weight, row, col, center_row, center_col, decay, limit):
    """Return the bias (in powers of two) and its derivative by the weight (both in logits).

    Operands:
        held: whether a key lies in a query's rect.
        weight: the queries' weights, in logits.
        row, col: the keys' cells.
        center_row, center_col: the queries' centres, in cells.
        decay: ``log2(e) / (2 sigma^2)``.
        limit: the bias is clamped to [-limit, limit], in logits.
    """
    down = row.to(tl.float32) - center_row
    right = col.to(tl.float32) - center_col
    fall = tl.exp2(-decay * (down * down + right * right))
    raw = weight * fall
    # A GPU's min and max drop a NaN unless told otherwise; torch.clamp keeps it.
    lifted = tl.maximum(raw, -limit, propagate_nan=tl.PropagateNan.ALL)
    clamped = tl.minimum(lifted, limit, propagate_nan=tl.PropagateNan.ALL)
    bias = tl.where(held, clamped * LOG2E, 0.0)
    # The slope includes the limit, as the gradient of torch.clamp does.
    return bias, tl.where(held & (tl.abs(raw) <= limit), fall, 0.0)


@triton.jit
def read_segment(
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
    KIND: tl.constexpr,
):
    """Load the queries' rects, weights and centres in a segment. All tiles of the segment use them.

    Operands:
        sorted_rects: (S, 2, padded) of the batch item.
        places: (M,) places of the queries in sorted order. present: whether each of them exists.
        weights, centers: (M,) pointers to the queries' values in segment 0.

    Returns:
        Five (M,) tensors: packed first and last cell of the rects, weight in logits, and the row and column
        of a gaussian's centre.
    """
    rects = sorted_rects + segment * 2 * padded + places
    first = tl.load(rects)
    last = tl.load(rects + padded)
    weight = tl.zeros(places.shape, tl.float32)
    center_row = weight
    center_col = weight
    if KIND != MASK:
        weight = tl.load(weights + segment * w_s, mask=present, other=0.0).to(tl.float32)
    if KIND == GAUSSIAN:
        center_row = tl.load(centers + segment * c_s, mask=present, other=0.0).to(tl.float32)
        center_col = tl.load(centers + segment * c_s + c_d, mask=present, other=0.0).to(tl.float32)
    return first, last, weight, center_row, center_col


@triton.jit
def tile_bias(
    shape,
    corner,
    first,
    last,
    weight,
    center_row,
    center_col,
    base,
    decay,
    limit,
    KIND: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """Return what is added to the scores of a tile.

    Operands:
        shape, corner: of the tile, as in ``lists.cut_grid``.
        first, last, weight, center_row, center_col: (M,) as ``read_segment`` returns them.
        base: (M,) added everywhere, so that bias and shift together cost one select per score.

    Returns:
        The bias (M, TILE_K) in powers of two; whether each key lies in each rect (M, TILE_K); whether each
        rect meets the tile (M,); and the derivative of a gaussian bias by the weight.
    """
    held, met = held_by_bits(corner, shape & 7, first, last, TILE_K)
    slope = 0.0
    if KIND == MASK:
        bias = tl.where(held, base[:, None], float("-inf"))
    elif KIND == GAUSSIAN:
        row, col = cell_of_keys(shape, corner, TILE_K)
        bias, slope = gaussian_and_slope(
            held, weight[:, None], row[None, :], col[None, :], center_row[:, None], center_col[:, None],
            decay, limit,
        )  # fmt: skip
        bias += base[:, None]
    else:
        bias = tl.where(held, (weight * LOG2E + base)[:, None], base[:, None])
    return bias, held, met, slope
