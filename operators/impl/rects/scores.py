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
def next_plain(listing, i, num_tiles, KIND: tl.constexpr, TILE_K: tl.constexpr):
    """Return first key and shape of the i-th entry of a list, or of its last.

    Loops read entries one turn ahead into registers: as copies to shared memory, which Triton makes of loads
    that the address of another load waits for, they would drain the pipeline of keys and values each turn.
    """
    if KIND == NONE:
        return i * TILE_K, 0
    entry = listing + tl.minimum(i, num_tiles - 1) * 4
    return tl.load(entry), tl.load(entry + 1)


@triton.jit
def next_tile(listing, i, num_tiles):
    """Return the i-th entry of a list, or its last: first key, shape, corner, rest (``lists.cut_grid``)."""
    entry = listing + tl.minimum(i, num_tiles - 1) * 4
    return tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)


@triton.jit
def is_cut(packed):
    """Say whether a tile reaches beyond its own cells. packed: last number of its entry."""
    return (packed >> 12 & 1) != 0


@triton.jit
def own_cells(shape, packed, TILE_K: tl.constexpr):
    """Return which keys of a tile are its own, (TILE_K,) bool."""
    n = tl.arange(0, TILE_K)
    width = shape & 7
    return ((n >> width) < (packed >> 6 & 63)) & ((n & ((1 << width) - 1)) < (packed & 63))


@triton.jit
def cell_of_keys(shape, corner, TILE_K: tl.constexpr):
    """Return row and column of the keys of a tile, (TILE_K,) each."""
    n = tl.arange(0, TILE_K)
    width = shape & 7
    return (corner >> 16) + (n >> width), (corner & 0xFFFF) + (n & ((1 << width) - 1))


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
def held_by_bits(corner, width, first, last, TILE_K: tl.constexpr):
    """Say which keys of a tile lie in which rects, (M, TILE_K), and which rects meet the tile, (M,).

    One bit test a score: within a tile a rect is a run of columns, repeated over a run of rows: TILE_K
    bits per query, of which a thread of the matrix unit's layout holds those of its two rows only.

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
    # Shifts of what is not ``some`` are cut to the word's size, as nothing else defines them.
    run = (every << (left & 31).to(tl.uint32)) & (every >> (31 - right & 31).to(tl.uint32))
    # A one at every 2^width-th bit: times that, the run stands in every row.
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
    # In two steps: a thread holds every 8th key, so the second is by a constant the compiler sees.
    held = (((half >> (n & 7)[None, :].to(tl.uint32)) >> (n & 24)[None, :].to(tl.uint32)) & 1) != 0
    return held, some


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
    """Load what the queries have in a segment: it serves all its tiles.

    Operands:
        sorted_rects: (S, 2, padded) of the batch item.
        places: (M,) of the queries in sorted order. present: which of them exist.
        weights, centers: (M,) pointers to the queries' values in segment 0.

    Returns:
        (M,) first and last cell of the rects, packed; weight in logits; a gaussian's center, row and column.
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
        shape, corner: of the tile.
        first, last, weight, center_row, center_col: (M,) as ``read_segment`` returns them.
        base: (M,) added everywhere, so that bias and shift together cost one select a score.

    Returns:
        (M, TILE_K) in powers of two; (M, TILE_K) which keys the rects hold; (M,) which rects meet the tile;
        derivative of a gaussian bias by the weight.
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
