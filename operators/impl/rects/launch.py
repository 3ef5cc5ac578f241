"""Buffers, and two custom ops that torch.compile and autograd know.

``biaswise::rects_forward`` and ``biaswise::rects_backward`` are opaque to the compiler and need nothing from
the host but shapes, so they can be captured in a CUDA graph (after one call of the same shape outside:
Triton compiles, and the table of tiles is copied to the device, on first use).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
import triton
from torch import Tensor

from operators.impl.rects import forward_kernels, key_grad_kernels, query_grad_kernels
from operators.impl.rects.lists import Lists, Segments, cut_grid, list_blocks, list_tiles, overlap, tile_table
from operators.impl.rects.sizes import MASK_SPLITS, Blocks, blocks_for, choose_splits

_LOG2E = math.log2(math.e)


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
        segments: first key, rows and columns of every segment.
        rects: (B, Q, S, 4) int32.
        weight: (B, H or 1, Q, S) float, in logits.
        centers: (B, Q, S, 2) float, in cells. sigma: in cells. limit: in logits.
    """

    kind: Kind
    segments: Segments
    rects: Tensor | None = None
    weight: Tensor | None = None
    centers: Tensor | None = None
    sigma: float = 1.0
    limit: float = 1.0


class Call:
    """What the kernels of one forward or backward share: sizes, pointers, strides, constants."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None, centers: Tensor | None,
        segments: Sequence[int], kind: int, scale: float, sigma: float, limit: float,
    ) -> None:  # fmt: skip
        self.q, self.k, self.v = rows_contiguous(q), near(k), near(v)
        self.batch, self.heads, self.num_queries, self.head_size = q.shape
        self.num_keys, self.kind, self.weight = k.shape[2], kind, weight
        self.blocks, self.num_blocks, self.num_tiles = measure(q, k, segments, kind)
        self.padded = self.num_blocks * self.blocks.queries
        self.pairs = self.batch * self.heads
        self.num_segments = len(segments) // 3
        self.table = tile_table(triples(segments), self.blocks.keys, q.device) if kind else self.q
        # A tensor that is not there is never read; a pointer is needed all the same.
        self.fields = [self.q if weight is None else weight, self.q if centers is None else centers]
        self.field_strides = [0] * 4 if weight is None else list(weight.stride())
        if weight is not None and weight.shape[1] == 1:
            self.field_strides[1] = 0  # shared by the heads
        self.field_strides += [0] * 4 if centers is None else list(centers.stride())
        self.key_strides = (*self.k.stride()[:3], *self.v.stride()[:3])
        self.scale, self.numbers = scale, (scale * _LOG2E, _LOG2E / (2 * sigma * sigma), limit)
        self.block_d = triton.next_power_of_2(self.head_size)
        self.constants: dict[str, Any] = {
            "KIND": kind,
            "HEAD": self.head_size,
            "BLOCK_D": self.block_d,
            "BLOCK_Q": self.blocks.queries,
            "TILE_K": self.blocks.keys,
            "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",  # tf32 would break the error budget
            "num_warps": self.blocks.warps,
        }

    def splits(self) -> int:
        """Return into how many shares the tiles of a block are cut."""
        if self.kind == Kind.MASK and self.q.is_cuda:
            return min(MASK_SPLITS, self.num_tiles)  # how many tiles are read is known on the device alone
        return choose_splits(self.num_blocks * self.pairs, self.num_tiles, self.q.device)


def measure(q: Tensor, k: Tensor, segments: Sequence[int], kind: int) -> tuple[Blocks, int, int]:
    """Return block sizes, number of blocks of queries, and number of tiles (without a bias: runs of keys)."""
    blocks = blocks_for(kind, q.dtype, q.shape[-1], q.device.type)
    num_tiles = len(cut_grid(triples(segments), blocks.keys)) if kind else -(-k.shape[2] // blocks.keys)
    return blocks, -(-q.shape[2] // blocks.queries), num_tiles


def triples(flat: Sequence[int]) -> Segments:
    """Undo the flattening that custom ops ask for."""
    return tuple((flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3))


def rows_contiguous(tensor: Tensor) -> Tensor:
    """Return the tensor with its last axis contiguous; the other strides are taken as they are."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def near(tensor: Tensor) -> Tensor:
    """Return keys or values whose rows lie within 2^31 elements of the first, last axis contiguous."""
    return rows_contiguous(tensor) if tensor.shape[2] * tensor.stride(2) < 2**31 else tensor.contiguous()


def _outputs(q: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate output, with the strides of q so that the caller's reshape is free, rest, and LSE."""
    rest = q.new_empty(q.shape if keep and q.dtype != torch.float32 else (0,))
    return torch.empty_like(q), rest, q.new_empty(q.shape[:3], dtype=torch.float32)


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
        the output; if ``keep`` and it is of half precision, what rounding took from it, (B, H, Q, D) in its
        dtype and contiguous, for the backward, else no elements; the log2-sum-exp (B, H, Q); and the lists.
    """
    out, rest, lse = _outputs(q, keep)
    keep = rest.numel() > 0
    call = Call(q, k, v, weight, centers, segments, kind, scale, sigma, limit)
    splits = call.splits()
    first, later = overlap(q.device)
    with torch.cuda.device_of(q):
        lists = (
            Lists.none(q) if rects is None else list_tiles(rects, call.table, call.blocks, kind == Kind.MASK)
        )
        part, part_lse = out, lse
        if splits > 1:
            part = q.new_empty((splits, *q.shape), dtype=torch.float32)
            part_lse = q.new_empty((splits, *lse.shape), dtype=torch.float32)
        forward_kernels.forward_kernel[(call.num_blocks, splits, call.pairs)](
            call.q, call.k, call.v, part, rest, part_lse, lists.order, lists.rects, *call.fields,
            lists.tiles, lists.counts, *call.q.stride()[:3], *call.key_strides,
            part.stride(0) if splits > 1 else 0, *part.stride()[-4:], *call.field_strides,
            call.batch, call.heads, call.num_queries, call.padded, call.num_keys, call.num_tiles,
            call.num_segments, *call.numbers, SPLITS=splits, KEEP=keep,
            ONLINE=q.dtype == torch.float16,
            **call.constants, **call.blocks.forward.options, **(first if rects is None else later),
        )  # fmt: skip
        if splits > 1:
            forward_kernels.merge_kernel[(triton.cdiv(call.num_queries, 16), call.pairs)](
                part, part_lse, out, rest, lse, *out.stride(), call.heads, call.num_queries,
                HEAD=call.head_size, BLOCK_D=call.block_d, SPLITS=splits, KEEP=keep, ROWS=16, num_warps=2,
                **later,
            )  # fmt: skip
    return out, rest, lse, *lists.tensors


@rects_forward.register_fake
def _(q, k, v, rects, weight, centers, segments, kind, scale, sigma, limit, keep):
    blocks, num_blocks, num_tiles = measure(q, k, segments, kind)
    padded = num_blocks * blocks.queries
    lists = Lists.none(q) if rects is None else Lists.empty(rects, num_blocks, num_tiles, padded)
    return *_outputs(q, keep), *lists.tensors


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None, need: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate the gradients of q, of k and v, and of the weight that are needed; others have no elements."""
    need_query, need_keys, need_weight = need
    return (
        torch.empty_like(q) if need_query else q.new_empty(0),
        torch.empty_like(k) if need_keys else k.new_empty(0),
        torch.empty_like(v) if need_keys else v.new_empty(0),
        weight.new_empty(weight.shape) if need_weight and weight is not None else q.new_empty(0),
    )


@torch.library.custom_op("biaswise::rects_backward", mutates_args=())
def rects_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor | None,
    centers: Tensor | None,
    out: Tensor,
    rest: Tensor,
    lse: Tensor,
    lists: Sequence[Tensor],
    segments: Sequence[int],
    kind: int,
    scale: float,
    sigma: float,
    limit: float,
    need: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and the weight; ``need``: of q, of k and v, of the weight."""
    dq, dk, dv, dw = _gradients(q, k, v, weight, need)
    call = Call(q, k, v, weight, centers, segments, kind, scale, sigma, limit)
    found = Lists(*lists)
    grad = rows_contiguous(grad)
    with torch.cuda.device_of(q):
        rows = [q.new_empty((call.pairs, call.padded, call.head_size)) for _ in range(2)]
        rows += [q.new_empty((call.pairs, call.padded), dtype=torch.float32) for _ in range(2)]
        query_grad_kernels.prepare_kernel[(triton.cdiv(call.padded, 32), call.pairs)](
            call.q, out, rest, grad, lse, found.order, *rows,
            *call.q.stride()[:3], *out.stride(), *grad.stride()[:3],
            call.heads, call.num_queries, call.padded,
            KIND=kind, HEAD=call.head_size, BLOCK_D=call.block_d, KEPT=rest.numel() > 0, ROWS=32, num_warps=4,
        )  # fmt: skip
        if need[0] or need[2]:
            _query_grads(call, rows, found, dq if need[0] else None, dw if need[2] else None)
        if need[1]:
            _key_grads(call, rows, found, dk, dv)
    return dq, dk, dv, dw


def _query_grads(call: Call, rows: list[Tensor], lists: Lists, dq: Tensor | None, dw: Tensor | None) -> None:
    """Compute dQ and the gradient of the weight. rows: queries, gradients, LSE and D in sorted order."""
    splits, shape = call.splits(), tuple(call.q.shape)
    part = call.q.new_empty((splits, *shape), dtype=torch.float32)
    part_weight = call.q.new_zeros(
        1 if dw is None else (splits, *shape[:3], call.num_segments), dtype=torch.float32
    )
    query_grad_kernels.query_grad_kernel[(call.num_blocks, splits, call.pairs)](
        *rows, call.k, call.v, part, part_weight, lists.order, lists.rects, *call.fields,
        lists.tiles, lists.counts, *call.key_strides, *part.stride(), *call.field_strides,
        call.batch, call.heads, call.num_queries, call.padded, call.num_keys, call.num_tiles,
        call.num_segments, call.scale, *call.numbers, SPLITS=splits, NEED_WEIGHT=dw is not None,
        **call.constants, **call.blocks.query_grad.options,
    )  # fmt: skip
    if dq is not None:
        dq.copy_(part.sum(0) if splits > 1 else part[0])
    if dw is not None:
        summed = part_weight.sum(0)
        dw.copy_(summed.sum(1, keepdim=True) if dw.shape[1] == 1 else summed)


def _key_grads(call: Call, rows: list[Tensor], lists: Lists, dk: Tensor, dv: Tensor) -> None:
    """Compute dK and dV. rows: queries, gradients, LSE and D in sorted order."""
    by_tile, counts = list_blocks(lists.flags) if call.kind else (lists.tiles, lists.counts)
    key_grad_kernels.key_grad_kernel[(call.num_tiles, call.pairs)](
        *rows, call.k, call.v, dk, dv, lists.order, lists.rects, *call.fields, call.table, by_tile, counts,
        *call.key_strides, *dk.stride(), *dv.stride(), *call.field_strides,
        call.heads, call.num_queries, call.padded, call.num_keys, call.num_tiles, call.num_blocks,
        call.num_segments, call.scale, *call.numbers, **call.constants, **call.blocks.key_grad.options,
    )  # fmt: skip


@rects_backward.register_fake
def _(grad, q, k, v, weight, centers, out, rest, lse, lists, segments, kind, scale, sigma, limit, need):
    return _gradients(q, k, v, weight, need)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what the backward reads."""
    q, k, v, _, weight, centers, *ctx.numbers, _ = inputs
    ctx.save_for_backward(q, k, v, weight, centers, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """Return the gradients in the order of the inputs."""
    if grad is None:
        return (None,) * 12
    q, k, v, weight, centers, out, rest, lse, *lists = ctx.saved_tensors
    need_q, need_k, need_v, _, need_weight, *_ = ctx.needs_input_grad
    need = [need_q, need_k or need_v, need_weight]
    kept = (q, k, v, weight, centers, out, rest, lse)
    dq, dk, dv, dw = rects_backward(grad, *kept, lists, *ctx.numbers, need)
    found = (
        dq if need_q else None,
        dk if need_k else None,
        dv if need_v else None,
        None,
        dw if need_weight else None,
    )
    return (*found, *(None,) * 7)


rects_forward.register_autograd(_backward, setup_context=_save)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, field: Field) -> Tensor:
    """Call the op. Shapes as in ``operators.impl.rects.forward``."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # Triton 3.6's interpreter multiplies the bits of bfloat16 as integers, and truncates when it casts.
        return attend(q.float(), k.float(), v.float(), scale, field).to(q.dtype)
    flat = [number for segment in field.segments for number in segment]
    leaves = (q, k, v, field.weight)
    keep = torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in leaves)
    out: Tensor = rects_forward(
        q, k, v, field.rects, field.weight, field.centers, flat, int(field.kind), scale, field.sigma,
        field.limit, keep,
    )[0]  # fmt: skip
    return out
