"""From tensors to kernels: block sizes, buffers, and two custom ops that torch.compile and autograd know.

``biaswise::rects_forward`` and ``biaswise::rects_backward`` are opaque to the compiler and need nothing from
the host but shapes, so they can be captured in a CUDA graph (after one call of the same shape outside:
Triton compiles, and the table of tiles is copied to the device, on first use).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from math import log2

import torch
import triton
from torch import Tensor

from operators.impl.rects import backward_kernels, forward_kernels, tiles

_LOG2E = log2(2.718281828459045)
_MAX_SIDE = 0x7FFF  # rows and columns share an int32, and a bit of each half guards a comparison


class Kind(IntEnum):
    """What is added; the values are those of ``scores``."""

    NONE = 0
    WINDOW = 1
    GAUSSIAN = 2
    MASK = 3


@dataclass(frozen=True, eq=False)
class Field:
    """What is added to the scores, taken apart for the custom op.

    Attributes:
        kind: see there.
        segments: (first key, rows, columns) of every segment.
        rects: (B, Q, S, 4) int32.
        weight: (B, H or 1, Q, S) float, in logits.
        centers: (B, Q, S, 2) float, in cells. sigma: in cells. limit: in logits.
    """

    kind: Kind
    segments: tuple[tuple[int, int, int], ...]
    rects: Tensor | None = None
    weight: Tensor | None = None
    centers: Tensor | None = None
    sigma: float = 1.0
    limit: float = 1.0


@dataclass(frozen=True)
class Compile:
    """How Triton compiles one kernel.

    Attributes:
        stages: depth of the software pipeline of the plain loop.
        touched_stages: of the loop over touched tiles, whose loads are many and small.
        registers: limit per thread, so that more programs share a multiprocessor; None: no limit.
    """

    stages: int
    touched_stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int | None]:
        """As keyword arguments of a launch."""
        return {"STAGES": self.stages, "TOUCHED_STAGES": self.touched_stages, "maxnreg": self.registers}


@dataclass(frozen=True)
class Blocks:
    """Sizes of the tiles of scores, and how the kernels over them are compiled.

    Attributes:
        queries, keys: of a tile of scores.
        warps: per program.
        resident: programs that one multiprocessor holds: registers allow so many.
        forward, query_grad, key_grad: of the three large kernels.
    """

    queries: int
    keys: int
    warps: int
    resident: int
    forward: Compile
    query_grad: Compile
    key_grad: Compile


_PLAIN = Compile(1, 1)
_INTERPRETED = Blocks(64, 32, 1, 1, _PLAIN, _PLAIN, _PLAIN)  # its cost is per operation, whatever its size
_LARGE = Blocks(32, 32, 4, 2, Compile(2, 1), Compile(2, 1), Compile(2, 1))
_MASK = Blocks(16, 32, 2, 8, Compile(3, 3), Compile(3, 3), Compile(3, 3))
_TUNED = Blocks(64, 64, 4, 4, Compile(3, 1, 128), Compile(3, 1, 168), Compile(3, 1, 168))


def blocks_for(kind: int, dtype: torch.dtype, head_size: int, device: str) -> Blocks:
    """Choose block sizes. Measured for bfloat16 and D = 32 on an H200 (docs/log.md); safe elsewhere."""
    if device == "cpu":
        return _INTERPRETED
    if dtype == torch.float32 or head_size > 64:
        return _LARGE  # 4-byte operands and long rows: shared memory sets the limit
    return _MASK if kind == Kind.MASK else _TUNED  # few keys matter to a mask: small tiles fit closer


@lru_cache(maxsize=64)
def cut_grid(segments: tuple[tuple[int, int, int], ...], tile_keys: int) -> tuple[tuple[int, ...], ...]:
    """Cut all segments, (first key, rows, columns) each, into tiles.

    Returns:
        per tile: first key, segment, first row, first column, end of rows, end of columns, log2 of its width,
        and its shape (columns of the segment << 3 | log2 width).
    """
    found = []
    for segment, (offset, rows, cols) in enumerate(segments):
        if max(rows, cols) > _MAX_SIDE:
            raise ValueError(
                f"segment {segment}: rects takes maps of at most {_MAX_SIDE} cells a side, got {rows} x {cols}"
            )
        for row, col, row_end, col_end, width in tiles.cut_segment(rows, cols, tile_keys):
            key = offset + row * cols + col
            found.append((key, segment, row, col, row_end, col_end, width, cols << 3 | width))
    return tuple(found)


@lru_cache(maxsize=64)
def tile_table(segments: tuple[tuple[int, int, int], ...], tile_keys: int, device: torch.device) -> Tensor:
    """Copy ``cut_grid`` to the device as (tiles, 8) int32, once per grid."""
    with torch.inference_mode(False):  # cached for calls outside of it too
        return torch.tensor(cut_grid(segments, tile_keys), dtype=torch.int32, device=device)


def count_tiles(kind: int, segments: tuple[tuple[int, int, int], ...], num_keys: int, tile_keys: int) -> int:
    """Count the tiles; without a bias they are runs of keys."""
    return len(cut_grid(segments, tile_keys)) if kind else (num_keys + tile_keys - 1) // tile_keys


@dataclass(frozen=True, eq=False)
class Lists:
    """Which queries go together and which tiles they touch; see ``tiles``. Empty without a bias."""

    order: Tensor  # (B, padded) int32
    rects: Tensor  # (B, S, 2, padded) int32
    tiles: Tensor  # (B, blocks, tiles, 2) int32
    counts: Tensor  # (B, blocks) int32
    flags: Tensor  # (B, blocks, tiles) int8

    @classmethod
    def empty(cls, rects: Tensor, blocks: int, num_tiles: int, block_queries: int) -> "Lists":
        """Allocate for rects (B, Q, S, 4)."""
        batch, _, num_segments, _ = rects.shape
        padded = blocks * block_queries
        return cls(
            rects.new_empty((batch, padded)),
            rects.new_empty((batch, num_segments, 2, padded)),
            rects.new_empty((batch, blocks, num_tiles, 2)),
            rects.new_empty((batch, blocks)),
            rects.new_empty((batch, blocks, num_tiles), dtype=torch.int8),
        )

    @classmethod
    def none(cls, like: Tensor) -> "Lists":
        """Allocate nothing."""
        return cls(
            *(like.new_empty(0, dtype=torch.int32) for _ in range(4)), like.new_empty(0, dtype=torch.int8)
        )

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All of them, in order."""
        return self.order, self.rects, self.tiles, self.counts, self.flags


def list_tiles(rects: Tensor, table: Tensor, blocks: Blocks) -> Lists:
    """Order the queries and list every block's tiles. rects: (B, Q, S, 4) int32, any strides."""
    batch, num_queries, num_segments, _ = rects.shape
    rects = rects if rects.stride(-1) == 1 else rects.contiguous()
    num_tiles = len(table)
    num_blocks = triton.cdiv(num_queries, blocks.queries)
    padded = num_blocks * blocks.queries
    lists = Lists.empty(rects, num_blocks, num_tiles, blocks.queries)
    codes = torch.empty_like(lists.order)
    strides = rects.stride()[:3]
    rows = 16 if rects.is_cuda else 128  # many small programs; few in the interpreter
    tiles.code_kernel[(triton.cdiv(padded, 2 * rows), batch)](
        rects, codes, *strides, num_queries, padded, S=num_segments, N=2 * rows, num_warps=1
    )
    tiles.rank_kernel[(triton.cdiv(padded, rows), batch)](
        codes, rects, lists.order, lists.rects, *strides, num_queries, padded,
        S=num_segments, N=rows, CHUNK=512, num_warps=4,
    )  # fmt: skip
    tiles.flag_kernel[(triton.cdiv(num_tiles, 32), num_blocks, batch)](
        lists.rects, table, lists.flags, padded, num_tiles, num_segments,
        BLOCK_Q=blocks.queries, TILE_K=blocks.keys, CHUNK=32, num_warps=4,
    )  # fmt: skip
    tiles.list_kernel[(num_blocks, batch)](
        lists.flags, table, lists.tiles, lists.counts, num_tiles, CHUNK=1024, num_warps=4
    )
    return lists


def choose_splits(programs: int, num_tiles: int, device: torch.device, resident: int) -> int:
    """Cut every block's tiles so that the programs fill the GPU: the fewest splits within 5 % of the best.

    Args:
        programs: blocks of queries times heads times batch.
        num_tiles: tiles of keys; a share should hold a few.
        resident: programs that one multiprocessor holds.
    """
    if device.type == "cpu":
        return min(2, max(1, num_tiles // 2))  # the interpreter: as few as let the tests see a split
    slots = torch.cuda.get_device_properties(device).multi_processor_count * resident
    most = max(1, min(16, num_tiles // 4))  # 16 x D x 4 bytes of partial results a query is what we spend

    def waste(splits: int) -> float:
        return -(-programs * splits // slots) * slots / (programs * splits)

    best = min(waste(s) for s in range(1, most + 1))
    return next(s for s in range(1, most + 1) if waste(s) <= 1.05 * best)


def like(tensor: Tensor) -> Tensor:
    """Allocate a result with the strides of ``tensor``, so that the caller's reshape of it is free."""
    return torch.empty_like(tensor)


def rows_contiguous(tensor: Tensor) -> Tensor:
    """Return the tensor with its last axis contiguous; the other strides are taken as they are."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _precision(dtype: torch.dtype) -> str:
    """Float32 products stay float32: tf32 would break the error budget."""
    return "ieee" if dtype == torch.float32 else "tf32"


def _field_arguments(
    weight: Tensor | None, centers: Tensor | None, q: Tensor
) -> tuple[list[Tensor], list[int]]:
    """Return pointers and strides of weight and centers; a tensor that is not there is never read."""
    w_strides = [0] * 4
    if weight is not None:
        w_strides = list(weight.stride())
        w_strides[1] = 0 if weight.shape[1] == 1 else w_strides[1]
    c_strides = [0] * 4 if centers is None else list(centers.stride())
    return [q if weight is None else weight, q if centers is None else centers], w_strides + c_strides


def _decay(sigma: float) -> float:
    return _LOG2E / (2 * sigma * sigma)


def _segments(flat: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Undo the flattening that custom ops ask for."""
    return tuple((flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3))


def _empty_outputs(q: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Allocate the output and its unrounded twin."""
    return like(q), q.new_empty(q.shape if keep else (0,), dtype=torch.float32)


@torch.library.custom_op("biaswise::rects_forward", mutates_args=())
def rects_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rects: Tensor | None,
    weight: Tensor | None,
    centers: Tensor | None,
    segments: Sequence[int],
    kind: int,
    scale: float,
    sigma: float,
    limit: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Attend.

    Returns:
        the output; the same as float32 and contiguous, for the backward, if ``keep``; the log2-sum-exp (B, H, Q);
        and the lists.
    """
    batch, heads, num_queries, head_size = q.shape
    out, exact = _empty_outputs(q, keep)
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    blocks = blocks_for(kind, q.dtype, head_size, q.device.type)
    num_tiles = count_tiles(kind, _segments(segments), k.shape[2], blocks.keys)
    table = tile_table(_segments(segments), blocks.keys, q.device) if kind else q
    num_blocks = triton.cdiv(num_queries, blocks.queries)
    lse = q.new_empty((batch, heads, num_queries), dtype=torch.float32)
    splits = choose_splits(num_blocks * batch * heads, num_tiles, q.device, blocks.resident)
    with torch.cuda.device_of(q):
        lists = Lists.none(q) if rects is None else list_tiles(rects, table, blocks)
        part, part_lse = out, lse
        if splits > 1:
            part = q.new_empty((splits, *q.shape), dtype=torch.float32)
            part_lse = q.new_empty((splits, *lse.shape), dtype=torch.float32)
        pointers, strides = _field_arguments(weight, centers, q)
        forward_kernels.forward_kernel[(num_blocks, splits, batch * heads)](
            q, k, v, part, exact, part_lse, lists.order, lists.rects, *pointers, table,
            lists.tiles, lists.counts, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            part.stride(0) if splits > 1 else 0, *part.stride()[-4:], *strides,
            batch, heads, num_queries, num_blocks * blocks.queries, k.shape[2], num_tiles, len(segments) // 3,
            scale * _LOG2E, _decay(sigma), limit,
            KIND=kind, HEAD=head_size, BLOCK_D=triton.next_power_of_2(head_size), BLOCK_Q=blocks.queries,
            TILE_K=blocks.keys, SPLITS=splits, KEEP=keep, ONLINE=kind == Kind.MASK or q.dtype == torch.float16,
            PRECISION=_precision(q.dtype), num_warps=blocks.warps, **blocks.forward.options,
        )  # fmt: skip
        if splits > 1:
            forward_kernels.merge_kernel[(triton.cdiv(num_queries, 16), batch * heads)](
                part, part_lse, out, exact, lse, *out.stride(), heads, num_queries,
                HEAD=head_size, BLOCK_D=triton.next_power_of_2(head_size), SPLITS=splits, KEEP=keep, ROWS=16, num_warps=2,
            )  # fmt: skip
    return out, exact, lse, *lists.tensors


@rects_forward.register_fake
def _(q, k, v, rects, weight, centers, segments, kind, scale, sigma, limit, keep):  # type: ignore[no-untyped-def]
    blocks = blocks_for(kind, q.dtype, q.shape[-1], q.device.type)
    num_tiles = count_tiles(kind, _segments(segments), k.shape[2], blocks.keys)
    num_blocks = (q.shape[2] + blocks.queries - 1) // blocks.queries
    lists = Lists.none(q) if rects is None else Lists.empty(rects, num_blocks, num_tiles, blocks.queries)
    return *_empty_outputs(q, keep), q.new_empty(q.shape[:3], dtype=torch.float32), *lists.tensors


@torch.library.custom_op("biaswise::rects_backward", mutates_args=())
def rects_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor | None,
    centers: Tensor | None,
    out: Tensor,
    lse: Tensor,
    lists: Sequence[Tensor],
    segments: Sequence[int],
    kind: int,
    scale: float,
    sigma: float,
    limit: float,
    need_query: bool,
    need_keys: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and the weight; a tensor without elements where none is needed."""
    batch, heads, num_queries, head_size = q.shape
    dq, dk, dv, dw = _empty_gradients(q, k, v, weight, need_query, need_keys, need_weight)
    q, k, v, grad = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v), rows_contiguous(grad)
    order, sorted_rects, tile_lists, counts, flags = lists
    blocks = blocks_for(kind, q.dtype, head_size, q.device.type)
    num_tiles = count_tiles(kind, _segments(segments), k.shape[2], blocks.keys)
    table = tile_table(_segments(segments), blocks.keys, q.device) if kind else q
    num_blocks = triton.cdiv(num_queries, blocks.queries)
    padded = num_blocks * blocks.queries
    block_d = triton.next_power_of_2(head_size)
    pairs = batch * heads
    sorted_q, sorted_g = (q.new_empty((pairs, padded, head_size)) for _ in range(2))
    sorted_lse, sorted_delta = (q.new_empty((pairs, padded), dtype=torch.float32) for _ in range(2))
    pointers, strides = _field_arguments(weight, centers, q)
    options = {
        "KIND": kind, "HEAD": head_size, "BLOCK_D": block_d, "BLOCK_Q": blocks.queries, "TILE_K": blocks.keys,
        "PRECISION": _precision(q.dtype), "num_warps": blocks.warps,
    }  # fmt: skip
    with torch.cuda.device_of(q):
        backward_kernels.prepare_kernel[(triton.cdiv(padded, 32), pairs)](
            q, out, grad, lse, order, sorted_q, sorted_g, sorted_lse, sorted_delta,
            *q.stride()[:3], *grad.stride()[:3], heads, num_queries, padded,
            KIND=kind, HEAD=head_size, BLOCK_D=block_d, ROWS=32, num_warps=4,
        )  # fmt: skip
        if need_query or need_weight:
            splits = choose_splits(num_blocks * pairs, num_tiles, q.device, blocks.resident)
            part = q.new_empty((splits, *q.shape), dtype=torch.float32)
            part_weight = q.new_zeros(
                (splits, *q.shape[:3], len(segments) // 3) if need_weight else (1,), dtype=torch.float32
            )
            backward_kernels.query_grad_kernel[(num_blocks, splits, pairs)](
                sorted_q, sorted_g, sorted_lse, sorted_delta, k, v, part, part_weight, order, sorted_rects,
                *pointers, table, tile_lists, counts, *k.stride()[:3], *v.stride()[:3],
                *part.stride(), *strides, batch, heads, num_queries, padded, k.shape[2], num_tiles,
                len(segments) // 3, scale, scale * _LOG2E, _decay(sigma), limit,
                SPLITS=splits, NEED_WEIGHT=need_weight, **options, **blocks.query_grad.options,
            )  # fmt: skip
            if need_query:
                dq.copy_(part.sum(0) if splits > 1 else part[0])
            if need_weight and weight is not None:
                summed = part_weight.sum(0)
                dw.copy_(summed.sum(1, keepdim=True) if weight.shape[1] == 1 else summed)
        if need_keys:
            by_tile = tile_lists.new_empty((batch, num_tiles, num_blocks) if kind else (0,))
            by_tile_counts = tile_lists.new_empty((batch, num_tiles) if kind else (0,))
            if kind:
                tiles.transpose_kernel[(triton.cdiv(num_tiles, 32), batch)](
                    flags, by_tile, by_tile_counts, num_blocks, num_tiles, CHUNK=32, num_warps=1
                )
            backward_kernels.key_grad_kernel[(num_tiles, pairs)](
                sorted_q, sorted_g, sorted_lse, sorted_delta, k, v, dk, dv, order, sorted_rects, *pointers,
                table, by_tile, by_tile_counts, *k.stride()[:3], *v.stride()[:3],
                *dk.stride(), *dv.stride(), *strides, heads, num_queries, padded, k.shape[2], num_tiles, num_blocks,
                len(segments) // 3, scale, scale * _LOG2E, _decay(sigma), limit, **options, **blocks.key_grad.options,
            )  # fmt: skip
    return dq, dk, dv, dw


def _empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None, query: bool, keys: bool, weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate what is needed."""
    return (
        like(q) if query else q.new_empty(0),
        like(k) if keys else k.new_empty(0),
        like(v) if keys else v.new_empty(0),
        weight.new_empty(weight.shape) if weights and weight is not None else q.new_empty(0),
    )


@rects_backward.register_fake
def _(  # type: ignore[no-untyped-def]
    grad, q, k, v, weight, centers, out, lse, lists, segments, kind, scale, sigma, limit, query, keys, weights
):
    return _empty_gradients(q, k, v, weight, query, keys, weights)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    """Keep what the backward reads."""
    q, k, v, _, weight, centers, *ctx.numbers, _ = inputs
    _, out, lse, *lists = output
    ctx.save_for_backward(q, k, v, weight, centers, out, lse, *lists)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, *_):  # type: ignore[no-untyped-def]
    """Return the gradients in the order of the inputs."""
    if grad is None:
        return (None,) * 12
    q, k, v, weight, centers, out, lse, *lists = ctx.saved_tensors
    need_q, need_k, need_v, _, need_w, *_ = ctx.needs_input_grad
    dq, dk, dv, dw = rects_backward(
        grad, q, k, v, weight, centers, out, lse, lists, *ctx.numbers, need_q, need_k or need_v, need_w
    )
    return (
        dq if need_q else None,
        dk if need_k else None,
        dv if need_v else None,
        None,
        dw if need_w else None,
        *(None,) * 7,
    )


rects_forward.register_autograd(_backward, setup_context=_save)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, field: Field) -> Tensor:
    """Call the op. Shapes as in ``operators.impl.rects.forward``."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # Triton 3.6's interpreter multiplies the bits of bfloat16 as integers, and truncates when it casts.
        return attend(q.float(), k.float(), v.float(), scale, field).to(q.dtype)
    flat = [number for segment in field.segments for number in segment]
    weighed = field.weight is not None and field.weight.requires_grad
    keep = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad or weighed)
    out: Tensor = rects_forward(
        q,
        k,
        v,
        field.rects,
        field.weight,
        field.centers,
        flat,
        int(field.kind),
        scale,
        field.sigma,
        field.limit,
        keep,
    )[0]
    return out
