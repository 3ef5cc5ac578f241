"""Tiles cover every cell once, rects are found in them by two tests, and lists name the right tiles."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the kernel is written in Triton")

import triton
import triton.language as tl

from operators.impl.rects import lists, scores, tiles
from operators.impl.rects.sizes import Blocks, Compile
from operators.testing.cases import Sizes, make_case


@triton.jit
def bits_kernel(first, last, out, corner, width, TILE_K: tl.constexpr, M: tl.constexpr):
    m = tl.arange(0, M)
    held, _met = scores.held_by_bits(corner, width, tl.load(first + m), tl.load(last + m), TILE_K)
    tl.store(out + m[:, None] * TILE_K + tl.arange(0, TILE_K)[None, :], held.to(tl.int32))


@triton.jit
def cell_kernel(first, last, cells, out, TILE_K: tl.constexpr, M: tl.constexpr):
    m = tl.arange(0, M)
    n = tl.arange(0, TILE_K)
    held = scores.held_by_cell(
        tl.load(cells + n)[None, :], tl.load(first + m)[:, None], tl.load(last + m)[:, None]
    )
    tl.store(out + m[:, None] * TILE_K + n[None, :], held.to(tl.int32))


def random_rects(count):
    """Draw packed first and last cells around (9, 11), some empty, and the same unpacked."""
    rng = torch.Generator().manual_seed(0)
    low = torch.randint(0, 30, (count, 2), generator=rng)
    high = low + torch.randint(0, 20, (count, 2), generator=rng)
    first, last = ((cell[:, 0] << 16 | cell[:, 1]).int() for cell in (low, high))
    first[0], last[0] = 0x7FFF7FFF, 0  # how an empty rect is packed
    high[0] = -1
    return first, last, low, high


@pytest.mark.parametrize("size", [32, 64])
def test_tiles_cover_every_cell_once(size):
    for rows in (*range(1, 20), 40):
        for cols in (*range(1, 20), 50):
            seen = np.zeros((rows, cols), int)
            for row, col, row_end, col_end, width in tiles.cut_segment(rows, cols, size):
                assert row_end <= rows
                assert col_end <= cols
                seen[row : min(row + (size >> width), row_end), col : min(col + (1 << width), col_end)] += 1
            assert (seen == 1).all(), (rows, cols)


@pytest.mark.parametrize(
    ("shape", "most"), [((128, 128), 256), ((180, 180), 507), ((40, 100), 63), ((20, 50), 16)]
)
def test_the_decoders_maps_need_no_more_tiles_than_rows_of_keys_do(shape, most):
    assert len(tiles.cut_segment(*shape, 64)) == most == -(-shape[0] * shape[1] // 64)


@pytest.mark.parametrize(
    ("size", "width"), [(32, 1), (32, 3), (32, 4), (64, 1), (64, 2), (64, 3), (64, 4), (64, 5)]
)
def test_both_tests_of_membership_agree_with_the_definition(size, width, device):
    first, last, low, high = random_rects(64)
    n = torch.arange(size)
    row, col = 9 + (n >> width), 11 + (n & ((1 << width) - 1))
    expected = (
        ((row >= low[:, :1]) & (row <= high[:, :1]) & (col >= low[:, 1:]) & (col <= high[:, 1:]))
        .int()
        .to(device)
    )
    first, last, cells = (x.int().to(device) for x in (first, last, row << 16 | col))
    by_bits, by_cell = torch.empty_like(expected), torch.empty_like(expected)
    bits_kernel[(1,)](first, last, by_bits, 9 << 16 | 11, width, TILE_K=size, M=64)
    cell_kernel[(1,)](first, last, cells, by_cell, TILE_K=size, M=64)
    assert expected.any()
    assert torch.equal(by_bits, expected)
    assert torch.equal(by_cell, expected)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("placement", ["spread", "borders", "nowhere"])
def test_lists_name_the_tiles_that_rects_touch(placement, mask, device):
    sizes = Sizes(2, 1, 50, 16, bev=(17, 12), cameras=(2, 5, 9), window=(4, 3), placement=placement)
    case = make_case("window", sizes, torch.float32, device)
    segments = tuple((s.offset, s.rows, s.cols) for s in sizes.grid.segments)
    blocks = Blocks(16, 32, 4, *[Compile(1, 1)] * 3)
    table = lists.tile_table(segments, blocks.keys, torch.device(device))
    found = lists.list_tiles(case.windows, table, blocks, mask)
    for batch in range(2):
        order = found.order[batch].tolist()
        assert sorted(order) == list(range(64))
        assert order[50:] == list(range(50, 64))  # padding stands last
        for block in range(4):
            members = [q for q in order[block * 16 : block * 16 + 16] if q < 50]
            expected = touched(segments, case.windows[batch, members].tolist(), blocks.keys, mask)
            count = int(found.counts[batch, block])
            entries = found.tiles[batch, block].tolist()
            assert entries[:count] == [table[i].tolist() for i in expected]
            plain = {tuple(entry) for i, entry in enumerate(table.tolist()) if i not in expected}
            assert {tuple(entry) for entry in entries[count:]} == plain


def touched(segments, rects, size, mask):
    """Say by brute force which tiles hold a cell of a rect or, without a mask, reach beyond their end."""
    found = []
    every = [(s, *tile) for s, (_, *shape) in enumerate(segments) for tile in tiles.cut_segment(*shape, size)]
    for i, (segment, row, col, row_end, col_end, width) in enumerate(every):
        bottom, right = row + (size >> width), col + (1 << width)
        cells = {(r, c) for r in range(row, min(bottom, row_end)) for c in range(col, min(right, col_end))}
        hit = any(
            r0 <= r <= r1 and c0 <= c <= c1
            for query in rects
            for r0, r1, c0, c1 in [query[segment]]
            for r, c in cells
        )
        if hit or (not mask and (bottom > row_end or right > col_end)):
            found.append(i)
    return found


def test_neighbouring_windows_share_a_block(device):
    # One camera, windows along its columns in shuffled order: sorted, a block of 8 sees 1/8 of the columns.
    rng = torch.Generator().manual_seed(0)
    col = torch.randperm(64, generator=rng).int()
    rects = torch.stack((torch.zeros_like(col), torch.zeros_like(col) + 7, col, col), dim=-1).view(
        1, 64, 1, 4
    )
    empty = torch.tensor([0, -1, 0, -1], dtype=torch.int32).expand(1, 64, 1, 4)
    rects = torch.cat((empty, rects), dim=2).to(device)
    blocks = Blocks(16, 64, 4, *[Compile(1, 1)] * 3)
    table = lists.tile_table(((0, 8, 8), (64, 8, 64)), 64, torch.device(device))
    found = lists.list_tiles(rects, table, blocks)
    assert found.counts.tolist() == [[2, 2, 2, 2]]
