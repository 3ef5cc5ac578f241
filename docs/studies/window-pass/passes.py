"""Attention with a window bias as attention without one and a window pass, forward and backward.

``attend`` runs an unbiased kernel (``BACKENDS``) and adds what the windows change. The unbiased backward
kernel, given the output and the log-sum-exp of the result, returns the unbiased part of every gradient.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from kernels import add_parts_kernel, combine_kernel, forward_kernel, key_grad_kernel, query_grad_kernel
from torch import Tensor

from operators.impl.rects.launch import rects_backward, rects_forward
from operators.impl.rects.lists import Lists, list_blocks, list_tiles, overlap, tile_table
from operators.impl.rects.query_grad_kernels import prepare_kernel
from operators.impl.rects.sizes import INTERPRETED, Blocks, Compile
from operators.window_bias import WindowBias

Saved = tuple[Any, ...]
Forward = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Saved]]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Saved, float], tuple[Tensor, ...]]

_LOG2E = 1.4426950408889634


def _math_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Saved]:
    """Attend by the formula; like all forwards, return the output, its log-sum-exp, and what else is kept."""
    scores = q @ k.mT * scale
    return torch.softmax(scores, -1) @ v, scores.logsumexp(-1), ()


def _math_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, saved: Saved, scale: float
) -> tuple[Tensor, ...]:
    """Return dQ, dK and dV for a given output and log-sum-exp, as all backwards do."""
    p = torch.exp(q @ k.mT * scale - lse.unsqueeze(-1))
    ds = p * (grad @ v.mT - (grad * out).sum(-1, keepdim=True)) * scale
    return ds @ k, ds.mT @ q, p.mT @ grad


def _sdpa_flash_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Saved]:
    out, lse, *saved, _ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)
    return out, lse, tuple(saved)


def _sdpa_flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, saved: Saved, scale: float
) -> tuple[Tensor, ...]:
    cum_q, cum_k, max_q, max_k, seed, offset = saved
    return tuple(
        torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse, cum_q, cum_k, max_q, max_k, 0.0, False, seed, offset, scale=scale
        )
    )


def _cudnn_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Saved]:
    out, lse, *saved, _ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, scale=scale)
    return out, lse.reshape(q.shape[:3]), (lse.shape, *saved)


def _cudnn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, saved: Saved, scale: float
) -> tuple[Tensor, ...]:
    shape, cum_q, cum_k, max_q, max_k, seed, offset = saved
    return tuple(
        torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            grad, q, k, v, out, lse.view(shape), seed, offset, None, cum_q, cum_k, max_q, max_k, 0.0, False,
            scale=scale,
        )
    )  # fmt: skip


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Saved]:
    from flash_attn.cute import flash_attn_func

    inputs = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    out, lse = flash_attn_func(*inputs, softmax_scale=scale, return_lse=True)
    return out.transpose(1, 2), lse, ()


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, saved: Saved, scale: float
) -> tuple[Tensor, ...]:
    from flash_attn.cute.interface import _flash_attn_bwd  # the public function keeps output and LSE itself

    inputs = [tensor.transpose(1, 2) for tensor in (q, k, v, out, grad)]
    return tuple(part.transpose(1, 2) for part in _flash_attn_bwd(*inputs, lse, scale)[:3])


def _rects_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Saved]:
    numbers = ([0, 1, k.shape[2]], 0, scale, 1.0, 1.0)
    out, _, lse, *lists = rects_forward(q, k, v, None, None, None, *numbers, False)
    return out, lse / _LOG2E, (lists, numbers)


def _rects_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, saved: Saved, scale: float
) -> tuple[Tensor, ...]:
    lists, numbers = saved
    rest = q.new_empty(0)
    need = [True, True, False]
    return tuple(
        rects_backward(grad, q, k, v, None, None, out, rest, lse * _LOG2E, lists, *numbers, need)[:3]
    )


BACKENDS: dict[str, tuple[Forward, Backward]] = {
    "math": (_math_forward, _math_backward),
    "rects": (_rects_forward, _rects_backward),
    "flash": (_flash_forward, _flash_backward),
    "sdpa_flash": (_sdpa_flash_forward, _sdpa_flash_backward),
    "sdpa_cudnn": (_cudnn_forward, _cudnn_backward),
}
"""Attention without a bias by the name of its implementation; ``math`` stands in for them on a CPU."""


@dataclass(frozen=True)
class Plan:
    """How a window pass runs.

    Attributes:
        backend: a key of ``BACKENDS``.
        blocks: block sizes: ``small`` or ``large``.
        splits: shares of a block's tiles.
        beside: whether the lists are made on a stream of their own, while the unbiased kernel runs.
    """

    backend: str
    blocks: str = "large"
    splits: int = 4
    beside: bool = True

    def __str__(self) -> str:
        """Return a short name."""
        return f"{self.backend} + pass {self.blocks}/{self.splits}{'' if self.beside else ' in line'}"


_SIZES = {
    "small": Blocks(32, 32, 1, Compile(3, 3), Compile(3, 3), Compile(3, 3)),
    "large": Blocks(64, 64, 4, Compile(3, 3), Compile(3, 2), Compile(3, 2)),
}


@cache
def _side_stream() -> Any:
    """Return the stream of the lists; its blocks go before those of the unbiased kernel."""
    make: Any = torch.cuda.Stream  # PyTorch has no types for it
    return make(priority=-1)


class Pass:
    """The window pass of one call: its lists, and its launches."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, bias: WindowBias, plan: Plan) -> None:
        self.q, self.k, self.v, self.plan = q, k, v, plan
        self.weight, self.scale = bias.trainable.detach(), q.shape[-1] ** -0.5
        self.blocks = _SIZES[plan.blocks] if q.is_cuda else INTERPRETED
        self.table = tile_table(
            tuple((s.offset, s.rows, s.cols) for s in bias.grid.segments), self.blocks.keys, q.device
        )
        self.side = _side_stream() if q.is_cuda and plan.beside else None
        if self.side is not None:
            self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side) if self.side is not None else nullcontext():
            self.lists: Lists = list_tiles(bias.windows, self.table, self.blocks, mask=True)
        self.batch, self.heads, self.queries, self.size = q.shape
        self.pairs, self.segments = self.batch * self.heads, bias.grid.num_segments
        self.padded = self.lists.order.shape[1]
        self.num_blocks, self.num_tiles = self.lists.flags.shape[1:]
        strides = list(self.weight.stride())
        strides[1] *= int(self.weight.shape[1] > 1)  # 0: all heads share the weights
        self.strides = (*k.stride()[:3], *v.stride()[:3])
        self.weight_strides = strides
        self.constants: dict[str, Any] = {
            "D": self.size,
            "BLOCK_Q": self.blocks.queries,
            "TILE_K": self.blocks.keys,
            "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
            "num_warps": self.blocks.warps,
        }

    def join(self) -> None:
        """Wait for the lists, on the device."""
        if self.side is not None:
            torch.cuda.current_stream().wait_stream(self.side)

    def forward(self, plain: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return output, log-sum-exp, and what rounding took from the output."""
        splits, lists = self.plan.splits, self.lists
        parts = self.q.new_empty((splits, *self.q.shape), dtype=torch.float32)
        sums = self.q.new_empty((splits, *self.q.shape[:3]), dtype=torch.float32)
        first, later = overlap(self.q.device)
        self.join()
        forward_kernel[(self.num_blocks, splits, self.pairs)](
            self.q, self.k, self.v, lse, parts, sums, lists.order, lists.rects, self.weight, lists.tiles,
            lists.counts, *self.q.stride()[:3], *self.strides, *self.weight_strides, self.batch, self.heads,
            self.queries, self.padded, self.k.shape[2], self.num_tiles, self.segments, self.scale,
            SPLITS=splits, STAGES=self.blocks.forward.touched_stages, **self.constants, **first,
        )  # fmt: skip
        out, out_lse = torch.empty_like(plain), torch.empty_like(lse)
        rest = self.q.new_empty(self.q.shape)
        combine_kernel[(triton.cdiv(self.queries, 16), self.pairs)](
            plain, lse, parts, sums, out, out_lse, rest, *plain.stride()[:3], *out.stride()[:3], self.heads,
            self.queries, D=self.size, ROWS=16, SPLITS=splits, num_warps=2, **later,
        )  # fmt: skip
        return out, out_lse, rest

    def backward(
        self, grad: Tensor, out: Tensor, lse: Tensor, rest: Tensor, plain: tuple[Tensor, ...]
    ) -> Tensor:
        """Add the windows' part to the gradients ``plain`` in place, and return that of the weights."""
        dq, dk, dv = plain
        splits, lists = self.plan.splits, self.lists
        rows = [self.q.new_empty((self.pairs, self.padded, self.size)) for _ in range(2)]
        rows += [self.q.new_empty((self.pairs, self.padded), dtype=torch.float32) for _ in range(2)]
        prepare_kernel[(triton.cdiv(self.padded, 32), self.pairs)](
            self.q, out, rest, grad, lse, lists.order, *rows, *self.q.stride()[:3], *out.stride(),
            *grad.stride()[:3], self.heads, self.queries, self.padded, KIND=1, HEAD=self.size,
            BLOCK_D=self.size, KEPT=True, ROWS=32, num_warps=4,
        )  # fmt: skip
        parts = self.q.new_empty((splits, *self.q.shape), dtype=torch.float32)
        shares = self.q.new_zeros((splits, *self.q.shape[:3], self.segments), dtype=torch.float32)
        query_grad_kernel[(self.num_blocks, splits, self.pairs)](
            *rows, self.k, self.v, parts, shares, lists.order, lists.rects, self.weight, lists.tiles,
            lists.counts, *self.strides, *self.weight_strides, self.batch, self.heads, self.queries,
            self.padded, self.k.shape[2], self.num_tiles, self.segments, self.scale, SPLITS=splits,
            STAGES=self.blocks.query_grad.touched_stages, **self.constants,
        )  # fmt: skip
        add_parts_kernel[(triton.cdiv(self.queries, 16), self.pairs)](
            dq, parts, *dq.stride()[:3], self.heads, self.queries, D=self.size, ROWS=16, SPLITS=splits,
            num_warps=2,
        )  # fmt: skip
        key_grad_kernel[(self.num_tiles, self.pairs)](
            *rows, self.k, self.v, dk, dv, lists.order, lists.rects, self.weight, self.table,
            *list_blocks(lists.flags), *self.strides, *dk.stride()[:3], *dv.stride()[:3],
            *self.weight_strides, self.heads, self.queries, self.padded, self.num_tiles, self.num_blocks,
            self.segments, self.scale, STAGES=self.blocks.key_grad.touched_stages, **self.constants,
        )  # fmt: skip
        summed: Tensor = shares.sum(0)
        return summed.sum(1, keepdim=True) if self.weight.shape[1] == 1 else summed


class _Attend(torch.autograd.Function):
    """The two parts, with gradients."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: WindowBias, plan: Plan
    ) -> Tensor:
        """Attend."""
        forward, ctx.unbiased = BACKENDS[plan.backend]
        ctx.own = Pass(q, k, v, bias, plan)
        plain, lse, ctx.rest_of_backend = forward(q, k, v, ctx.own.scale)
        out, lse, rest = ctx.own.forward(plain, lse.contiguous())
        ctx.save_for_backward(out, lse, rest)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k, v and the weight."""
        (grad,) = grads
        own: Pass = ctx.own
        out, lse, rest = ctx.saved_tensors
        plain = ctx.unbiased(grad, own.q, own.k, own.v, out, lse, ctx.rest_of_backend, own.scale)
        return *plain, own.backward(grad, out, lse, rest, plain), None, None


def attend(q: Tensor, k: Tensor, v: Tensor, bias: WindowBias, plan: Plan) -> Tensor:
    """Attend with a window bias.

    Args:
        q: (B, H, Q, D); D is a power of two.
        k: (B, H, K, D).
        v: (B, H, K, D).
        bias: weights up to 80 logits, beyond which the factor exp(weight) leaves float32.
        plan: which kernels.

    Returns:
        (B, H, Q, D).
    """
    out: Tensor = _Attend.apply(q, k, v, bias.trainable, bias, plan)  # type: ignore[no-untyped-call]
    return out
