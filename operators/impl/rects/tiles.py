"""Which queries go together, and which tiles of keys their rects touch.

A *tile* is a run of ``TILE_K`` keys within one segment; a *block* is ``BLOCK_Q`` queries. Queries are put in
Morton order of their first window, so that the windows of a block lie near each other and touch few tiles.
Every block then gets a list of tiles: those that need work per score (a rect touches them, or the segment
ends within them) from the front, those that do not from the back. The attention kernels run one loop over
either part, and so none of their loops holds a branch.

The lists take 5 bytes for every BLOCK_Q x TILE_K scores: a thousandth of a dense bias.
"""

import triton
import triton.language as tl

_NO_RECT = tl.constexpr(127 << 24)  # code of a query without any window: after all others
_PADDING = tl.constexpr(0x7FFFFFFF)  # code of a query that does not exist: after those


@triton.jit
def spread_bits(x):
    """Put a zero between neighbouring bits of a 12-bit number."""
    x = (x | (x << 8)) & 0x00FF00FF
    x = (x | (x << 4)) & 0x0F0F0F0F
    x = (x | (x << 2)) & 0x33333333
    return (x | (x << 1)) & 0x55555555


@triton.jit
def code_kernel(
    rects, codes, stride_b, stride_q, stride_s, num_queries, padded, S: tl.constexpr, N: tl.constexpr
):
    """Write one number per query: segment and Morton code of its first window's middle.

    Args:
        rects: (B, Q, S, 4) int32, last axis contiguous.
        codes: (B, padded) int32.
    """
    q = tl.program_id(0) * N + tl.arange(0, N)
    batch = tl.program_id(1).to(tl.int64)
    valid = q < num_queries
    code = tl.where(valid, _NO_RECT, _PADDING)
    base = rects + batch * stride_b + q.to(tl.int64) * stride_q
    for s in range(S):
        row0 = tl.load(base + s * stride_s, mask=valid, other=0)
        row1 = tl.load(base + s * stride_s + 1, mask=valid, other=-1)
        col0 = tl.load(base + s * stride_s + 2, mask=valid, other=0)
        col1 = tl.load(base + s * stride_s + 3, mask=valid, other=-1)
        row = tl.minimum(
            tl.maximum((row0 + row1) // 2, 0), 4095
        )  # 12 bits: beyond, the order is only coarser
        col = tl.minimum(tl.maximum((col0 + col1) // 2, 0), 4095)
        own = (tl.minimum(s, 126) << 24) | (spread_bits(row) << 1) | spread_bits(col)
        code = tl.where((row0 <= row1) & (col0 <= col1) & (code == _NO_RECT), own, code)
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
    N: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Sort by counting, for every query, how many come before it; ties keep the caller's order.

    Args:
        order: (B, padded) int32: which query stands at a place; padding is at the end.
        sorted_rects: (B, S, 4, padded) int32: the rects in that order; empty for padding.
    """
    mine = tl.program_id(0) * N + tl.arange(0, N)
    batch = tl.program_id(1).to(tl.int64)
    here = mine < padded
    code = tl.load(codes + batch * padded + mine, mask=here, other=_PADDING)
    rank = tl.zeros([N], tl.int32)
    for start in range(0, padded, CHUNK):
        other = start + tl.arange(0, CHUNK)
        theirs = tl.load(codes + batch * padded + other, mask=other < padded, other=_PADDING)
        before = (theirs[None, :] < code[:, None]) | (
            (theirs[None, :] == code[:, None]) & (other[None, :] < mine[:, None])
        )
        rank += tl.sum(before.to(tl.int32), axis=1)
    tl.store(order + batch * padded + rank, mine, mask=here)
    valid = mine < num_queries
    base = rects + batch * stride_b + mine.to(tl.int64) * stride_q
    target = sorted_rects + batch * S * 4 * padded + rank
    for s in range(S):
        for side in tl.static_range(4):
            value = tl.load(base + s * stride_s + side, mask=valid, other=-(side % 2))
            tl.store(target + (s * 4 + side) * padded, value, mask=here)


@triton.jit
def touched_tiles(local0, count, cols, row0, row1, col0, col1, TILE_K: tl.constexpr):
    """Say which tiles hold a key of which rect.

    Args:
        local0: (T, 1) first key of a tile, counted from the start of its segment.
        count: keys in the segment. cols: its width.
        row0, row1, col0, col1: (1, M) rects.

    Returns:
        (T, M) bool; a rect that reaches beyond the segment may count as touching too much.
    """
    last = tl.minimum(local0 + TILE_K, count) - 1
    first_row = local0 // cols
    last_row = last // cols
    low = tl.maximum(row0, first_row)
    high = tl.minimum(row1, last_row)
    # Of the tile's first and last row it holds a part only; rows between are whole.
    from_col = tl.where(low == first_row, local0 - first_row * cols, 0)
    to_col = tl.where(high == last_row, last - last_row * cols, cols - 1)
    alone = (col1 >= from_col) & (col0 <= to_col)
    start_hit = (col1 >= from_col) & (col0 < cols)
    end_hit = (col0 <= to_col) & (col1 >= 0)
    hit = tl.where(low == high, alone, start_hit | end_hit | (high - low > 1))
    return hit & (low <= high) & (col0 <= col1)


@triton.jit
def list_kernel(
    sorted_rects,
    segments,
    lists,
    counts,
    flags,
    padded,
    num_tiles,
    S: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE_K: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """List the tiles of one block of queries: touched ones from the front, plain ones from the back.

    Args:
        segments: (S, 4) int32: first key, keys, columns, first tile.
        lists: (B, blocks, tiles) int32: touched tiles by number, plain tiles by their first key.
        counts: (B, blocks) int32: how many are touched.
        flags: (B, blocks, tiles) int8: 1 if touched.
    """
    block = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    row = batch * tl.num_programs(0) + block
    places = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    touched_so_far = 0
    plain_so_far = 0
    for s in range(S):
        offset = tl.load(segments + s * 4)
        count = tl.load(segments + s * 4 + 1)
        cols = tl.load(segments + s * 4 + 2)
        first_tile = tl.load(segments + s * 4 + 3)
        base = sorted_rects + (batch * S + s) * 4 * padded + places
        row0 = tl.load(base)[None, :]
        row1 = tl.load(base + padded)[None, :]
        col0 = tl.load(base + 2 * padded)[None, :]
        col1 = tl.load(base + 3 * padded)[None, :]
        tiles_here = (count + TILE_K - 1) // TILE_K
        for start in range(0, tiles_here, CHUNK):
            tile = start + tl.arange(0, CHUNK)
            real = tile < tiles_here
            local0 = tile * TILE_K
            hit = touched_tiles(local0[:, None], count, cols, row0, row1, col0, col1, TILE_K)
            cut = local0 + TILE_K > count  # the segment ends within this tile: its tail needs masking
            touched = ((tl.max(hit.to(tl.int32), axis=1) > 0) | cut) & real
            plain = real & (touched == 0)
            place = touched_so_far + tl.cumsum(touched.to(tl.int32), 0) - 1
            tl.store(lists + row * num_tiles + place, first_tile + tile, mask=touched)
            place = num_tiles - plain_so_far - tl.cumsum(plain.to(tl.int32), 0)
            tl.store(lists + row * num_tiles + place, offset + local0, mask=plain)
            tl.store(flags + row * num_tiles + first_tile + tile, touched.to(tl.int8), mask=real)
            touched_so_far += tl.sum(touched.to(tl.int32), 0)
            plain_so_far += tl.sum(plain.to(tl.int32), 0)
    tl.store(counts + row, touched_so_far)


@triton.jit
def transpose_kernel(flags, lists, counts, num_blocks, num_tiles, CHUNK: tl.constexpr):
    """List the blocks of queries of every tile: those that touch it from the front, others from the back.

    Args:
        flags: (B, blocks, tiles) int8.
        lists: (B, tiles, blocks) int32.
        counts: (B, tiles) int32: how many blocks touch.
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
