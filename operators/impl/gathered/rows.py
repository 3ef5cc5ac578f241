"""Attention to a few keys a query, which are gathered."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from operators.impl.gathered.pairs import Pairs

_GATHERED = 1 << 24
"""Elements of gathered keys at a time: 64 MB in single precision, whatever the size of the windows."""


class Table(NamedTuple):
    """The keys of every query.

    Attributes:
        keys: (B * Q, W) int64, an index into (B, K) flattened; 0 in an empty slot.
        filled: (B * Q, W) bool.
    """

    keys: Tensor
    filled: Tensor


Jointly = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``attend_jointly`` over some pairs: a function of q, keys and values."""


def attend(q: Tensor, k: Tensor, v: Tensor, jointly: Jointly) -> Tensor:
    """Return softmax(q @ k.mT) @ v over some pairs, (B, H, Q, D); 0 for a query without a pair.

    Heads lie side by side, so that a key is gathered at once: a query is a block-diagonal matrix of H rows.
    Its product with a key has the same terms as head by head, and zeros.

    Args:
        q: (B, H, Q, D), scaled.
        k: (B, H or 1, K, D).
        v: (B, H or 1, K, D).
        jointly: attends to them, given heads that share keys and values.
    """
    batch, heads, queries, size = q.shape
    if k.shape[1] == 1:
        rows_of_q = q.transpose(1, 2).reshape(batch * queries, heads, size)
        found = jointly(rows_of_q, k.reshape(-1, size), v.reshape(-1, size))
        return found.view(batch, queries, heads, size).transpose(1, 2)
    keys, values = (x.transpose(1, 2).reshape(-1, heads * size) for x in (k, v))
    asking = torch.diag_embed(q.permute(0, 2, 3, 1)).movedim(2, -1)  # (B, Q, H, H, D)
    out = jointly(asking.reshape(batch * queries, heads, heads * size), keys, values)
    own = out.view(batch, queries, heads, heads, size).diagonal(dim1=2, dim2=3)  # (B, Q, D, H)
    return own.permute(0, 3, 1, 2)


def attend_jointly(q: Tensor, keys: Tensor, values: Tensor, pairs: Pairs) -> Tensor:
    """Return softmax(q @ keys.mT) @ values over the pairs, for heads that share keys and values.

    Args:
        q: (B * Q, H, C), scaled.
        keys: (B * K, C).
        values: (B * K, C').
        pairs: what each query attends to.

    Returns:
        (B * Q, H, C'); 0 for a query without a pair.
    """
    table = Table(*pairs.slots())
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, keys, values)):
        out: Tensor = _Attention.apply(q, keys, values, table)  # type: ignore[no-untyped-call]
        return out
    return forward(q, keys, values, table)[0]


class _Attention(torch.autograd.Function):
    """Keeps the probabilities of the pairs, and gathers keys and values again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, keys: Tensor, values: Tensor, table: Table) -> Tensor:
        """Attend."""
        out, probabilities = forward(q, keys, values, table)
        ctx.save_for_backward(q, keys, values, probabilities, out)
        ctx.table = table
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients to q, keys and values."""
        q, keys, values, probabilities, out = ctx.saved_tensors
        return *backward(grads[0], q, keys, values, probabilities, out, ctx.table), None


def backward(
    grad: Tensor, q: Tensor, keys: Tensor, values: Tensor, probabilities: Tensor, out: Tensor, table: Table
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients to q, keys and values, given what ``forward`` took and returned."""
    dq, dkeys, dvalues = torch.empty_like(q), torch.zeros_like(keys), torch.zeros_like(values)
    share = (grad * out).sum(dim=-1, keepdim=True)
    for some in _chunks(q, table):
        probability, down, at = probabilities[some], grad[some], table.keys[some]
        slope = probability * (down @ _gathered(values, at).mT - share[some])
        torch.bmm(slope, _gathered(keys, at), out=dq[some])
        dkeys.index_add_(0, at.flatten(), (slope.mT @ q[some]).flatten(0, 1))
        dvalues.index_add_(0, at.flatten(), (probability.mT @ down).flatten(0, 1))
    return dq, dkeys, dvalues


def forward(q: Tensor, keys: Tensor, values: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Return the output (B * Q, H, C') and the probabilities of the pairs (B * Q, H, W)."""
    out = q.new_empty(*q.shape[:2], values.shape[1])
    probabilities = q.new_empty(*q.shape[:2], table.keys.shape[1])
    for some in _chunks(q, table):
        at, probability, empty = table.keys[some], probabilities[some], ~table.filled[some, None]
        torch.bmm(q[some], _gathered(keys, at).mT, out=probability)
        torch.softmax(probability.masked_fill_(empty, -torch.inf), dim=-1, out=probability)
        probability.masked_fill_(empty, 0)  # the softmax of a query without a key is NaN
        torch.bmm(probability, _gathered(values, at), out=out[some])
    return out, probabilities


def _gathered(rows: Tensor, at: Tensor) -> Tensor:
    """Return the rows (B * K, C) at some places (n, W), as (n, W, C)."""
    return rows.index_select(0, at.flatten()).view(*at.shape, -1)


def _chunks(q: Tensor, table: Table) -> Iterator[slice]:
    """Yield slices of the queries whose keys fit into memory."""
    most = max(_GATHERED // (table.keys.shape[1] * q.shape[2]), 1)
    for first in range(0, len(q), most):
        yield slice(first, min(first + most, len(q)))
