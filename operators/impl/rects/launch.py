"""Buffers, and two custom ops for ``torch.compile`` and autograd.

``biaswise::rects_forward`` and ``biaswise::rects_backward`` are opaque to the compiler. The host needs only
shapes, so a CUDA graph can capture them. Call them once with the same shapes before the capture: the first
use compiles the kernels and copies the table of tiles to the device.
"""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from operators.forms import RectsForm
from operators.grid import static_size
from operators.impl.rects import forward_kernels, key_grad_kernels, query_grad_kernels
from operators.impl.rects.lists import Lists, Segments, cut_grid, list_blocks, list_tiles, overlap, tile_table
from operators.impl.rects.sizes import MASK_SPLITS, Blocks, blocks_for, choose_splits

_LOG2E = math.log2(math.e)


class Kind(IntEnum):
    """What is added to the scores; the values are those of ``scores``."""

    NONE = 0
    WINDOW = 1
    GAUSSIAN = 2
    MASK = 3


class Call:
    """The arguments that all kernels of one pass share: sizes, tensors, strides, constants."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None, centers: Tensor | None,
        segments: Sequence[int], kind: int, scale: float, sigma: float, limit: float,
    ) -> None:  # fmt: skip
        self.q, self.k, self.v = rows_contiguous(q), addressable(k), addressable(v)
        self.batch, self.heads, self.num_queries, self.head_size = q.shape
        self.num_keys, self.kind, self.weight = k.shape[2], kind, weight
        self.blocks, self.num_blocks, self.num_tiles = measure(q, k, segments, kind)
        self.padded = self.num_blocks * self.blocks.queries
        self.pairs = self.batch * self.heads
        self.num_segments = len(segments) // 3
        self.table = tile_table(triples(segments), self.blocks.keys, q.device) if kind else self.q
        # The kernels need a pointer for a missing tensor too, and never read from it.
        self.fields = [self.q if weight is None else weight, self.q if centers is None else centers]
        self.field_strides = [0] * 4 if weight is None else list(weight.stride())
        if weight is not None and weight.shape[1] == 1:
            self.field_strides[1] = 0  # all heads share it
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
            "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",  # tf32 would exceed the error budget
            "num_warps": self.blocks.warps,
        }

    def splits(self) -> int:
        """Return the number of shares into which the tiles of a block are split."""
        if self.kind == Kind.MASK and self.q.is_cuda:
            return min(MASK_SPLITS, self.num_tiles)  # only the device knows how many tiles are read
        return choose_splits(self.num_blocks * self.pairs, self.num_tiles, self.q.device)


def measure(q: Tensor, k: Tensor, segments: Sequence[int], kind: int) -> tuple[Blocks, int, int]:
    """Return the block sizes, the number of blocks of queries and the number of tiles of keys.

    Without a bias a tile is a run of consecutive keys.
    """
    blocks = blocks_for(kind, q.dtype, q.shape[-1], q.device.type)
    num_tiles = len(cut_grid(triples(segments), blocks.keys)) if kind else -(-k.shape[2] // blocks.keys)
    return blocks, -(-q.shape[2] // blocks.queries), num_tiles


def triples(flat: Sequence[int]) -> Segments:
    """Return segments (first key, rows, columns) from the flat list that a custom op takes."""
    return tuple((flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3))


def rows_contiguous(tensor: Tensor) -> Tensor:
    """Return the tensor with a contiguous last axis; the other strides may be any."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def addressable(tensor: Tensor) -> Tensor:
    """Return keys or values with a contiguous last axis and all rows within 2^31 elements of the first."""
    return rows_contiguous(tensor) if tensor.shape[2] * tensor.stride(2) < 2**31 else tensor.contiguous()


def _outputs(q: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the output, the rest and the log-sum-exp.

    The output has the strides of q, so that the caller can reshape it without a copy.
    """
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
        The output; the rest; the log2-sum-exp (B, H, Q); and the five tensors of ``Lists``. The rest is what
        rounding took from the output, (B, H, Q, D) contiguous in the output's dtype, for the backward pass.
        It has no elements without ``keep`` and for float32.
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
    """Allocate the gradients of q, k, v and the weight. Those that are not needed have no elements."""
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
    """Return the gradients of q, k, v and the weight.

    ``need`` says which are computed: that of q, those of k and v, that of the weight.
    """
    dq, dk, dv, dw = _gradients(q, k, v, weight, need)
    call = Call(q, k, v, weight, centers, segments, kind, scale, sigma, limit)
    saved_lists = Lists(*lists)
    grad = rows_contiguous(grad)
    with torch.cuda.device_of(q):
        rows = [q.new_empty((call.pairs, call.padded, call.head_size)) for _ in range(2)]
        rows += [q.new_empty((call.pairs, call.padded), dtype=torch.float32) for _ in range(2)]
        query_grad_kernels.prepare_kernel[(triton.cdiv(call.padded, 32), call.pairs)](
            call.q, out, rest, grad, lse, saved_lists.order, *rows,
            *call.q.stride()[:3], *out.stride(), *grad.stride()[:3],
            call.heads, call.num_queries, call.padded,
            KIND=kind, HEAD=call.head_size, BLOCK_D=call.block_d, KEPT=rest.numel() > 0, ROWS=32, num_warps=4,
        )  # fmt: skip
        if need[0] or need[2]:
            _query_grads(call, rows, saved_lists, dq if need[0] else None, dw if need[2] else None)
        if need[1]:
            _key_grads(call, rows, saved_lists, dk, dv)
    return dq, dk, dv, dw


def _query_grads(call: Call, rows: list[Tensor], lists: Lists, dq: Tensor | None, dw: Tensor | None) -> None:
    """Compute dQ and the weight's gradient; ``rows`` are queries, gradients, LSE and D in sorted order."""
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
    """Compute dK and dV; ``rows`` are queries, gradients, LSE and D in sorted order."""
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
    """Keep what the backward pass reads."""
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
    saved = (q, k, v, weight, centers, out, rest, lse)
    dq, dk, dv, dw = rects_backward(grad, *saved, lists, *ctx.numbers, need)
    gradients = (
        dq if need_q else None,
        dk if need_k else None,
        dv if need_v else None,
        None,
        dw if need_weight else None,
    )
    return (*gradients, *(None,) * 7)


rects_forward.register_autograd(_backward, setup_context=_save)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, form: RectsForm | None) -> Tensor:
    """Call the forward op; arguments as for ``operators.impl.rects.forward``.

    Raises:
        NotImplementedError: an input has a tangent (``torch.func.jvp``). A custom op would return none, which
            reads as zero.
    """
    _refuse_tangents(q, k, v, None if form is None else form.weight)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # Triton 3.6's interpreter multiplies the bits of bfloat16 as integers, and truncates when it casts.
        return attend(q.float(), k.float(), v.float(), scale, form).to(q.dtype)
    rects = weight = centers = None
    sigma = limit = 1.0
    flat = [0, 1, static_size(k.shape[2])]
    if form is not None:
        rects, weight = form.rects, form.weight
        flat = [static_size(n) for s in form.grid.segments for n in (s.offset, s.rows, s.cols)]
        if form.gaussian is not None:
            centers, sigma, limit = form.gaussian
            centers = centers.detach()
    keep = torch.is_grad_enabled() and any(
        leaf is not None and leaf.requires_grad for leaf in (q, k, v, weight)
    )
    out: Tensor = rects_forward(
        q, k, v, rects, weight, centers, flat, int(kind_of(form)), scale, sigma, limit, keep
    )[0]  # fmt: skip
    return out


def _refuse_tangents(*inputs: Tensor | None) -> None:
    """Refuse forward-mode differentiation, for which a custom op has no formula."""
    if torch.compiler.is_compiling():  # the compiler refuses it by itself
        return
    if any(tensor is not None and unpack_dual(tensor).tangent is not None for tensor in inputs):
        raise NotImplementedError(
            "rects has no forward-mode derivative (torch.func.jvp, jacfwd); use the implementation "
            "reference or sdpa_math"
        )


def kind_of(form: RectsForm | None) -> Kind:
    """Return what a form adds to the scores."""
    if form is None:
        return Kind.NONE
    if form.mode == "mask":
        return Kind.MASK
    return Kind.WINDOW if form.gaussian is None else Kind.GAUSSIAN
