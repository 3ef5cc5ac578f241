# mypy: disallow-incomplete-defs=False
"""Sort the queries into blocks, and list the tiles of keys that the rects of each block touch.

A *tile* is a small rectangle of up to ``TILE_K`` cells of one segment, 8 x 8 where it fits. A *block* is
``BLOCK_Q`` queries. Queries are sorted by their last window: by segment, then by column. Windows of the first
segment are in Morton order. In a camera a column is a direction, so the queries of a block look in a similar
direction, in the cameras and on the BEV map. With these tiles and blocks, half as many tiles are touched as
with rows of keys and Morton order (12 against 25 % with windows of 15 x 15).

Every block has a list of tiles. Tiles that need work per score come from the front: a rect touches them, or
they are *cut*, which means that they reach beyond their part of the segment. The other tiles, the *plain*
ones, come from the back. The attention kernels run one loop over each part, so no loop has a branch. The
lists take 17 bytes per BLOCK_Q x TILE_K scores, which is a five-hundredth of a dense bias.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_NO_RECT = tl.constexpr(127 << 24)  # code of a query without any window: sorts after all others
_PADDING = tl.constexpr(0x7FFFFFFF)  # code of padding: sorts after the queries without a window
_NEVER = tl.constexpr(0x7FFF7FFF)  # first cell of an empty rect, whose last cell is 0


def cut_segment(rows: int, cols: int, size: int) -> list[tuple[int, int, int, int, int]]:
    """Cut a map into tiles of ``size`` cells: 8 cells wide where they fit, other shapes along two borders.

    Returns:
        Per tile: first row, first column, end of its rows, end of its columns, log2 of its width. A tile is
        ``size >> log2 width`` rows tall. Its cells beyond an end belong to other tiles or to none.
    """
    tall, wide = size // 8, 8
    main_rows, main_cols = rows - rows % tall, cols - cols % wide
    cut = [(r, c, rows, cols, 3) for r in range(0, main_rows, tall) for c in range(0, main_cols, wide)]
    col = main_cols
    while col < cols:  # right border: columns of narrower, taller tiles
        width = min(1 << ((cols - col).bit_length() - 1), cols - col)
        shape = max(width, 2)
        cut += [(r, col, rows, col + width, shape.bit_length() - 1) for r in range(0, rows, size // shape)]
        col += width
    row = main_rows
    while row < rows:  # bottom border, left of that: rows of flatter, wider ones
        height = min(1 << ((rows - row).bit_length() - 1), rows - row)
        shape = size // max(height, 2)
        cut += [(row, c, row + height, main_cols, shape.bit_length() - 1) for c in range(0, main_cols, shape)]
        row += height
    return cut


@triton.jit
def spread_bits(x):
    """Return a 12-bit number with a zero inserted between each two bits."""
    x = (x | (x << 8)) & 0x00FF00FF
    x = (x | (x << 4)) & 0x0F0F0F0F
    x = (x | (x << 2)) & 0x33333333
    return (x | (x << 1)) & 0x55555555


@triton.jit
def read_rects(rects, stride_q, stride_s, q, valid, S: tl.constexpr, PADDED_S: tl.constexpr, N: tl.constexpr):
    """Return first row, first column, last row, last column of the queries' rects, (N, PADDED_S) each.

    One load reads all rects of a query. With one load per segment, each would wait for memory.

    Operands:
        rects: (Q, S, 4) int32 of the batch item, last axis contiguous. q, valid: (N,).
    """
    part = tl.arange(0, 4 * PADDED_S)
    pointers = rects + q.to(tl.int64)[:, None] * stride_q + ((part >> 2) * stride_s + (part & 3))[None, :]
    numbers = tl.load(pointers, mask=valid[:, None] & (part < 4 * S)[None, :], other=0)
    firsts, lasts = tl.split(tl.reshape(numbers, (N, PADDED_S, 2, 2)))
    row0, col0 = tl.split(firsts)
    row1, col1 = tl.split(lasts)
    return row0, col0, row1, col1


@triton.jit
def code_kernel(
    rects,
    codes,
    stride_b,
    stride_q,
    stride_s,
    num_queries,
    padded,
    S: tl.constexpr,
    PADDED_S: tl.constexpr,
    N: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Write the code of every query, by which the queries are sorted.

    Operands:
        rects: (B, Q, S, 4) int32, last axis contiguous.
        codes: (B, padded) int32.
    """
    if EARLY:
        gdc_launch_dependents()
    q = tl.program_id(0) * N + tl.arange(0, N)
    batch = tl.program_id(1).to(tl.int64)
    valid = q < num_queries
    row0, col0, row1, col1 = read_rects(
        rects + batch * stride_b, stride_q, stride_s, q, valid, S, PADDED_S, N
    )
    # 12 bits; on larger maps the order is only coarser.
    row = tl.minimum(tl.maximum((row0 + row1) // 2, 0), 4095)
    col = tl.minimum(tl.maximum((col0 + col1) // 2, 0), 4095)
    s = tl.arange(0, PADDED_S)[None, :]
    own = tl.where(s == 0, (spread_bits(row) << 1) | spread_bits(col), (col << 12) | row)
    some = (row0 <= row1) & (col0 <= col1) & (s < S)
    # The segment is in the highest bits, so the largest code is that of the last window.
    code = tl.max(tl.where(some, (tl.minimum(s, 126) << 24) | own, -1), axis=1)
    code = tl.where(valid, tl.where(code < 0, _NO_RECT, code), _PADDING)
    tl.store(codes + batch * padded + q, code, mask=q < padded)


@triton.jit
def rank_kernel(
    codes,
    rects,
    order,
    sorted_rects,
    stride_b,
    stride_q,
    stride_s,
    num_queries,
    padded,
    S: tl.constexpr,
    PADDED_S: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Sort the queries: a query's place is the number of queries before it. Ties keep the caller's order.

    Operands:
        order: (B, padded) int32: the query at each place; padding is at the end.
        sorted_rects: (B, S, 2, padded) int32: first and last cell (row << 16 | column), in sorted order. For
            an empty rect and for padding the first cell is beyond the last.
    """
    mine = tl.program_id(0) * N + tl.arange(0, N)
    batch = tl.program_id(1).to(tl.int64)
    here = mine < padded
    valid = mine < num_queries
    if EARLY:
        gdc_launch_dependents()
    # The rects come from the caller, so they can be read before the previous kernel ends.
    row0, col0, row1, col1 = read_rects(
        rects + batch * stride_b, stride_q, stride_s, mine, valid, S, PADDED_S, N
    )
    if EARLY:
        gdc_wait()
    code = tl.load(codes + batch * padded + mine, mask=here, other=_PADDING)
    counted = tl.zeros([N, CHUNK], tl.int32)
    for start in range(0, padded, CHUNK):
        other = start + tl.arange(0, CHUNK)
        theirs = tl.load(codes + batch * padded + other, mask=other < padded, other=_PADDING)
        before = (theirs[None, :] < code[:, None]) | (
            (theirs[None, :] == code[:, None]) & (other[None, :] < mine[:, None])
        )
        counted += before.to(tl.int32)
    rank = tl.sum(counted, axis=1)
    tl.store(order + batch * padded + rank, mine, mask=here)
    row0 = tl.maximum(row0, 0)
    col0 = tl.maximum(col0, 0)
    row1 = tl.minimum(row1, 0x7FFE)  # no segment is larger
    col1 = tl.minimum(col1, 0x7FFE)
    empty = (row0 > row1) | (col0 > col1) | (valid == 0)[:, None]
    s = tl.arange(0, PADDED_S)[None, :]
    target = sorted_rects + (batch * S + s) * 2 * padded + rank[:, None]
    kept = here[:, None] & (s < S)
    tl.store(target, tl.where(empty, _NEVER, (row0 << 16) | col0), mask=kept)
    tl.store(target + padded, tl.where(empty, 0, (row1 << 16) | col1), mask=kept)


@triton.jit
def flag_kernel(
    sorted_rects,
    tiles,
    flags,
    padded,
    num_tiles,
    num_segments,
    BLOCK_Q: tl.constexpr,
    CHUNK: tl.constexpr,
    WITH_CUT: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Flag the tiles that a block of queries touches. One program handles CHUNK tiles.

    Operands:
        tiles: (tiles, 4) int32, entries of ``lists.cut_grid``.
        flags: (B, blocks, tiles) int8: 1 if the tile is touched; with WITH_CUT, also if it is cut.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    block = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    tile = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    real = tile < num_tiles
    places = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    corner = tl.load(tiles + tile * 4 + 2, mask=real, other=0)
    packed = tl.load(tiles + tile * 4 + 3, mask=real, other=0)
    segment = packed >> 13
    row = corner >> 16
    col = corner & 0xFFFF
    last_row = row + (packed >> 6 & 63) - 1
    last_col = col + (packed & 63) - 1
    base = sorted_rects + (batch * num_segments + segment[:, None]) * 2 * padded + places[None, :]
    first = tl.load(base)
    last = tl.load(base + padded)
    hit = (first >> 16 <= last_row[:, None]) & (last >> 16 >= row[:, None])
    hit &= ((first & 0xFFFF) <= last_col[:, None]) & ((last & 0xFFFF) >= col[:, None]) & (first <= last)
    touched = tl.max(hit.to(tl.int32), axis=1) > 0
    if WITH_CUT:
        touched |= (packed >> 12 & 1) != 0
    row_of_flags = flags + (batch * tl.num_programs(1) + block) * num_tiles
    tl.store(row_of_flags + tile, touched.to(tl.int8), mask=real)


@triton.jit
def list_kernel(flags, tiles, lists, counts, num_tiles, CHUNK: tl.constexpr, EARLY: tl.constexpr):
    """List the tiles of one block of queries: touched ones from the front, plain ones from the back.

    Operands:
        flags: (B, blocks, tiles) int8.
        tiles: (tiles, 4) int32, entries of ``lists.cut_grid``.
        lists: (B, blocks, tiles, 4) int32: the entries in the order of the list.
        counts: (B, blocks) int32: number of touched tiles.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    touched_so_far = 0
    plain_so_far = 0
    for start in range(0, num_tiles, CHUNK):
        tile = start + tl.arange(0, CHUNK)
        real = tile < num_tiles
        touched = (tl.load(flags + row * num_tiles + tile, mask=real, other=0) != 0).to(tl.int32)
        plain = real.to(tl.int32) - touched
        seen = tl.cumsum(touched, 0)
        place = touched_so_far + seen - 1
        place = tl.where(touched != 0, place, num_tiles - plain_so_far - (tile - start + 1 - seen))
        parts = tl.arange(0, 4)[None, :]
        entries = tl.load(tiles + tile[:, None] * 4 + parts, mask=real[:, None], other=0)
        tl.store(lists + (row * num_tiles + place[:, None]) * 4 + parts, entries, mask=real[:, None])
        touched_so_far += tl.sum(touched, 0)
        plain_so_far += tl.sum(plain, 0)
    tl.store(counts + row, touched_so_far)


@triton.jit
def transpose_kernel(flags, lists, counts, num_blocks, num_tiles, CHUNK: tl.constexpr):
    """List the blocks of queries of every tile: those that touch it from the front, the others from the back.

    Operands:
        flags: (B, blocks, tiles) int8.
        lists: (B, tiles, blocks) int32.
        counts: (B, tiles) int32: number of blocks that touch the tile.
    """
    tile = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    batch = tl.program_id(1).to(tl.int64)
    real = tile < num_tiles
    touched_so_far = tl.zeros([CHUNK], tl.int32)
    base = lists + (batch * num_tiles + tile) * num_blocks
    for block in range(num_blocks):
        touched = tl.load(flags + (batch * num_blocks + block) * num_tiles + tile, mask=real, other=0) != 0
        place = tl.where(touched, touched_so_far, num_blocks - 1 - (block - touched_so_far))
        tl.store(base + place, block, mask=real)
        touched_so_far += touched.to(tl.int32)
    tl.store(counts + batch * num_tiles + tile, touched_so_far, mask=real)
