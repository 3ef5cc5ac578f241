"""Launches of the kernels of ``tiles``: the table of a grid's tiles, and the lists of all blocks."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
from torch import Tensor

from operators.impl.rects import tiles
from operators.impl.rects.sizes import Blocks

Segments = tuple[tuple[int, int, int], ...]
"""First key, rows and columns of every segment."""

_MAX_SIDE = 0x7FFF  # row and column share an int32, and a comparison uses one bit of each half as a guard


@lru_cache(maxsize=64)
def cut_grid(segments: Segments, tile_keys: int) -> tuple[tuple[int, ...], ...]:
    """Cut all segments into tiles.

    Returns:
        Four numbers per tile:

        - its first key;
        - its shape: columns of the segment << 3 | log2 of the tile's width;
        - its corner: first row << 16 | first column;
        - its extent: segment << 13 | whether it is cut (reaches beyond its own cells) << 12 | own rows << 6
          | own columns.

    Raises:
        ValueError: a segment has more than 32767 rows or columns.
    """
    entries = []
    for segment, (offset, rows, cols) in enumerate(segments):
        if max(rows, cols) > _MAX_SIDE:
            raise ValueError(
                f"segment {segment}: rects takes maps of up to {_MAX_SIDE} cells a side, got {rows} x {cols}"
            )
        for row, col, row_end, col_end, width in tiles.cut_segment(rows, cols, tile_keys):
            tall, wide = tile_keys >> width, 1 << width
            own_rows, own_cols = min(tall, row_end - row), min(wide, col_end - col)
            cut = own_rows < tall or own_cols < wide
            extent = segment << 13 | cut << 12 | own_rows << 6 | own_cols
            entries.append((offset + row * cols + col, cols << 3 | width, row << 16 | col, extent))
    return tuple(entries)


@lru_cache(maxsize=64)
def tile_table(segments: Segments, tile_keys: int, device: torch.device) -> Tensor:
    """Copy ``cut_grid`` to the device as (tiles, 4) int32, once per grid."""
    with torch.inference_mode(False):  # later calls outside inference mode get the same tensor
        return torch.tensor(cut_grid(segments, tile_keys), dtype=torch.int32, device=device)


@dataclass(frozen=True, eq=False)
class Lists:
    """The order of the queries, and the tiles that each block of them touches (see ``tiles``).

    Without a bias, no tensor has elements.

    Attributes:
        order: (B, padded) int32: the query at each place.
        rects: (B, S, 2, padded) int32: packed first and last cells, in that order.
        tiles: (B, blocks, tiles, 4) int32: entries of ``cut_grid``.
        counts: (B, blocks) int32: how many tiles are touched.
        flags: (B, blocks, tiles) int8: 1 if touched.
    """

    order: Tensor
    rects: Tensor
    tiles: Tensor
    counts: Tensor
    flags: Tensor

    @classmethod
    def empty(cls, rects: Tensor, num_blocks: int, num_tiles: int, padded: int) -> "Lists":
        """Allocate the tensors for rects (B, Q, S, 4)."""
        batch, _, num_segments, _ = rects.shape
        return cls(
            rects.new_empty((batch, padded)),
            rects.new_empty((batch, num_segments, 2, padded)),
            rects.new_empty((batch, num_blocks, num_tiles, 4)),
            rects.new_empty((batch, num_blocks)),
            rects.new_empty((batch, num_blocks, num_tiles), dtype=torch.int8),
        )

    @classmethod
    def none(cls, like: Tensor) -> "Lists":
        """Return tensors without elements, on the device of ``like``."""
        order, rects, entries, counts = (like.new_empty(0, dtype=torch.int32) for _ in range(4))
        return cls(order, rects, entries, counts, like.new_empty(0, dtype=torch.int8))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All tensors, in the order of the fields."""
        return self.order, self.rects, self.tiles, self.counts, self.flags


@lru_cache(maxsize=64)
def overlap(device: torch.device) -> tuple[dict[str, bool], dict[str, bool]]:
    """Return the launch options of the first kernel of a chain, and those of the later ones.

    From compute capability 9.0 on, a kernel may start before its predecessor has ended, and waits inside for
    the results (programmatic dependent launch). That saves a microsecond between each two of six kernels.
    """
    early = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"EARLY": early}, {"EARLY": early, "launch_pdl": early} if early else {"EARLY": False}


def list_tiles(rects: Tensor, table: Tensor, blocks: Blocks, mask: bool = False) -> Lists:
    """Order the queries, and list the tiles of every block.

    Args:
        rects: (B, Q, S, 4) int32, any strides.
        table: what ``tile_table`` returned.
        blocks: the sizes.
        mask: list as touched only the tiles that a rect touches. Without it, tiles that reach beyond their
            own cells are listed as touched too.
    """
    batch, num_queries, num_segments, _ = rects.shape
    rects = rects if rects.stride(-1) == 1 else rects.contiguous()
    num_tiles = len(table)
    num_blocks = triton.cdiv(num_queries, blocks.queries)
    padded = num_blocks * blocks.queries
    lists = Lists.empty(rects, num_blocks, num_tiles, padded)
    codes = torch.empty_like(lists.order)
    strides = rects.stride()[:3]
    rows = 8 if rects.is_cuda else 128  # many small programs on a GPU, few in the interpreter
    first, later = overlap(rects.device)
    segments = {"S": num_segments, "PADDED_S": triton.next_power_of_2(num_segments)}
    tiles.code_kernel[(triton.cdiv(padded, 4 * rows), batch)](
        rects, codes, *strides, num_queries, padded, **segments, N=4 * rows, num_warps=1, **first
    )
    tiles.rank_kernel[(triton.cdiv(padded, rows), batch)](
        codes, rects, lists.order, lists.rects, *strides, num_queries, padded,
        **segments, N=rows, CHUNK=512, num_warps=4, **later,
    )  # fmt: skip
    tiles.flag_kernel[(triton.cdiv(num_tiles, 32), num_blocks, batch)](
        lists.rects, table, lists.flags, padded, num_tiles, num_segments,
        BLOCK_Q=blocks.queries, CHUNK=32, WITH_CUT=not mask, num_warps=4, **later,
    )  # fmt: skip
    tiles.list_kernel[(num_blocks, batch)](
        lists.flags, table, lists.tiles, lists.counts, num_tiles, CHUNK=1024, num_warps=4, **later
    )
    return lists


def list_blocks(flags: Tensor) -> tuple[Tensor, Tensor]:
    """List the blocks that touch each tile, (B, tiles, blocks) int32, and count them: (B, tiles)."""
    batch, num_blocks, num_tiles = flags.shape
    lists = flags.new_empty((batch, num_tiles, num_blocks), dtype=torch.int32)
    counts = flags.new_empty((batch, num_tiles), dtype=torch.int32)
    tiles.transpose_kernel[(triton.cdiv(num_tiles, 32), batch)](
        flags, lists, counts, num_blocks, num_tiles, CHUNK=32, num_warps=1
    )
    return lists, counts
