"""Attention to all keys, with a bias at some pairs, block by block."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from operators.impl.gathered.pairs import Pairs

_BLOCK = 1 << 20
"""Scores in a block: 4 MB in single precision, about a core's share of the cache."""


class Block(NamedTuple):
    """Some queries of one sample and head."""

    sample: int
    head: int
    queries: slice


class Added(NamedTuple):
    """Where the bias is added.

    Attributes:
        place: (N,) int64, index of every pair among the scores (Q, K), flattened, of its sample and a head.
        bounds: ``Pairs.bounds``.
        queries: Q.
        keys: K.
    """

    place: Tensor
    bounds: list[int]
    queries: int
    keys: int

    @classmethod
    def at(cls, pairs: Pairs) -> "Added":
        """Add a bias at some pairs."""
        place = (pairs.query - pairs.sample * pairs.queries) * pairs.keys + pairs.key
        return cls(place, pairs.bounds, pairs.queries, pairs.keys)

    def within(self, block: Block) -> tuple[Tensor, slice]:
        """Return the places of a block's pairs among its scores, and which of all pairs these are."""
        first = block.sample * self.queries
        which = slice(self.bounds[first + block.queries.start], self.bounds[first + block.queries.stop])
        return self.place[which] - block.queries.start * self.keys, which


def attend(q: Tensor, k: Tensor, v: Tensor, added: Added | None, biases: Tensor | None) -> Tensor:
    """Return softmax(q @ k.mT + biases) @ v, (B, H, Q, D).

    Args:
        q: (B, H, Q, D), scaled.
        k: (B, H, K, D).
        v: (B, H, K, D).
        added: where a bias is added; None: nowhere.
        biases: (N, H or 1) in logits, of the dtype of ``q``; None without pairs.
    """
    given = [t for t in (q, k, v, biases) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        out: Tensor = _Attention.apply(q, k, v, biases, added)  # type: ignore[no-untyped-call]
        return out
    return forward(q, k, v, biases, added, None)


class _Attention(torch.autograd.Function):
    """Keeps the probabilities for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, biases: Tensor | None, added: Added | None
    ) -> Tensor:
        """Attend."""
        kept = q.new_empty(*q.shape[:3], k.shape[2])
        out = forward(q, k, v, biases, added, kept)
        ctx.save_for_backward(q, k, v, kept, out)
        ctx.added, ctx.bias_shape = added, None if biases is None else biases.shape
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients to q, k, v and the biases."""
        q, k, v, kept, out = ctx.saved_tensors
        return *backward(grads[0], q, k, v, kept, out, ctx.added, ctx.bias_shape), None


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: Tensor,
    out: Tensor,
    added: Added | None,
    bias_shape: Sequence[int] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients to q, k, v and the biases, given what ``forward`` took and returned."""
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    dbias = None if bias_shape is None else q.new_zeros(bias_shape)
    share = (grad * out).sum(dim=-1, keepdim=True)
    buffer = _buffer(q, k)
    for block in _blocks(q, k):
        b, h, queries = block
        probability, down = kept[b, h, queries], grad[b, h, queries]
        slope = torch.mm(down, v[b, h].mT, out=buffer[: len(down)])
        slope.sub_(share[b, h, queries]).mul_(probability)
        torch.mm(slope, k[b, h], out=dq[b, h, queries])
        dk[b, h].addmm_(slope.mT, q[b, h, queries])
        dv[b, h].addmm_(probability.mT, down)
        if dbias is not None and added is not None:
            place, which = added.within(block)
            dbias[which, min(h, dbias.shape[1] - 1)] += slope.view(-1)[place]
    return dq, dk, dv, dbias


def forward(
    q: Tensor, k: Tensor, v: Tensor, biases: Tensor | None, added: Added | None, kept: Tensor | None
) -> Tensor:
    """Attend; write the probabilities to ``kept`` (B, H, Q, K) if that is given."""
    out = torch.empty_like(q)
    buffer = _buffer(q, k) if kept is None else kept[0, 0]
    for block in _blocks(q, k):
        b, h, queries = block
        asking = q[b, h, queries]
        score = buffer[: len(asking)] if kept is None else kept[b, h, queries]
        torch.mm(asking, k[b, h].mT, out=score)
        if added is not None and biases is not None:
            place, which = added.within(block)
            score.view(-1)[place] += biases[which, min(h, biases.shape[1] - 1)]
        torch.softmax(score, dim=-1, out=score)
        torch.mm(score, v[b, h], out=out[b, h, queries])
    return out


def _rows(k: Tensor) -> int:
    """Return the number of queries in a block."""
    return max(_BLOCK // k.shape[2], 1)


def _buffer(q: Tensor, k: Tensor) -> Tensor:
    """Return memory for the scores of a block."""
    return q.new_empty(min(_rows(k), q.shape[2]), k.shape[2])


def _blocks(q: Tensor, k: Tensor) -> Iterator[Block]:
    """Yield every block."""
    batch, heads, queries, _ = q.shape
    for sample in range(batch):
        for head in range(heads):
            for first in range(0, queries, _rows(k)):
                yield Block(sample, head, slice(first, min(first + _rows(k), queries)))
