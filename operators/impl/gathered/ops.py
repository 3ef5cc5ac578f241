"""Custom ops for ``torch.compile``, which cannot trace what has as many elements as the windows have keys.

Their outputs have sizes that the compiler knows. The pairs are listed anew in the backward pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from operators.forms import GaussianField, RectsForm
from operators.grid import Segment, TokenGrid, static_size
from operators.impl.gathered import rows, scores
from operators.impl.gathered.biases import biases_of, weight_gradient
from operators.impl.gathered.pairs import Pairs


def attend_rows(q: Tensor, keys: Tensor, values: Tensor, form: RectsForm) -> Tensor:
    """Do what ``rows.attend_jointly`` does, over the pairs of a form."""
    out: Tensor = gathered_rows(q, keys, values, form.rects, _flat(form.grid))
    return out


def attend_scores(q: Tensor, k: Tensor, v: Tensor, form: RectsForm | None) -> Tensor:
    """Do what ``scores.attend`` does, with the bias of a form."""
    rects = weight = centers = None
    segments, sigma, limit = [0], 1.0, 1.0
    if form is not None:
        rects, weight, segments = form.rects, form.weight, _flat(form.grid)
        if form.gaussian is not None:
            centers, sigma, limit = form.gaussian
    keep = torch.is_grad_enabled() and any(
        leaf is not None and leaf.requires_grad for leaf in (q, k, v, weight)
    )
    out: Tensor = gathered_scores(q, k, v, rects, weight, centers, segments, sigma, limit, keep)[0]
    return out


def _flat(grid: TokenGrid) -> list[int]:
    """Return a grid as the list of numbers that a custom op takes."""
    return [static_size(n) for s in grid.segments for n in (s.offset, s.rows, s.cols, s.modality)]


def _form(
    rects: Tensor, weight: Tensor | None, centers: Tensor | None, segments: Sequence[int],
    sigma: float = 1.0, limit: float = 1.0,
) -> RectsForm:  # fmt: skip
    """Return the form that was taken apart for a custom op."""
    grid = TokenGrid(tuple(Segment(*segments[i : i + 4]) for i in range(0, len(segments), 4)))
    field = None if centers is None else GaussianField(centers, sigma, limit)
    return RectsForm(grid, rects, weight, "mask" if weight is None else "add", field)


@torch.library.custom_op("biaswise::gathered_rows", mutates_args=())
def gathered_rows(q: Tensor, keys: Tensor, values: Tensor, rects: Tensor, segments: Sequence[int]) -> Tensor:
    """Attend to the keys in rects; arguments as for ``rows.attend_jointly``."""
    return rows.forward(q, keys, values, _table(rects, segments))[0]


@gathered_rows.register_fake
def _(q, keys, values, rects, segments):
    return q.new_empty(*q.shape[:2], values.shape[1])


@torch.library.custom_op("biaswise::gathered_rows_backward", mutates_args=())
def gathered_rows_backward(
    grad: Tensor, q: Tensor, keys: Tensor, values: Tensor, rects: Tensor, segments: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients to q, keys and values."""
    table = _table(rects, segments)
    out, probabilities = rows.forward(q, keys, values, table)
    return rows.backward(grad, q, keys, values, probabilities, out, table)


@gathered_rows_backward.register_fake
def _(grad, q, keys, values, rects, segments):
    return torch.empty_like(q), torch.empty_like(keys), torch.empty_like(values)


def _table(rects: Tensor, segments: Sequence[int]) -> rows.Table:
    return rows.Table(*Pairs.of(_form(rects, None, None, segments)).slots())


def _save_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.segments = inputs
    ctx.save_for_backward(*tensors)


def _rows_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    found: Sequence[Tensor] = gathered_rows_backward(grad.contiguous(), *ctx.saved_tensors, ctx.segments)
    return *found, None, None


gathered_rows.register_autograd(_rows_backward, setup_context=_save_rows)


@torch.library.custom_op("biaswise::gathered_scores", mutates_args=())
def gathered_scores(
    q: Tensor, k: Tensor, v: Tensor, rects: Tensor | None, weight: Tensor | None, centers: Tensor | None,
    segments: Sequence[int], sigma: float, limit: float, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attend to all keys; arguments as for ``scores.attend``.

    Returns:
        The output, and the probabilities (B, H, Q, K); without ``keep`` these have no elements.
    """
    kept = q.new_empty((*q.shape[:3], k.shape[2]) if keep else (0,))
    added = biases = None
    if rects is not None:
        form = _form(rects, weight, centers, segments, sigma, limit)
        pairs = Pairs.of(form)
        added, biases = scores.Added.at(pairs), biases_of(form, pairs).to(q.dtype)
    return scores.forward(q, k, v, biases, added, kept if keep else None), kept


@gathered_scores.register_fake
def _(q, k, v, rects, weight, centers, segments, sigma, limit, keep):
    return torch.empty_like(q), q.new_empty((*q.shape[:3], k.shape[2]) if keep else (0,))


@torch.library.custom_op("biaswise::gathered_scores_backward", mutates_args=())
def gathered_scores_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, out: Tensor, rects: Tensor | None,
    weight: Tensor | None, centers: Tensor | None, segments: Sequence[int], sigma: float, limit: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients to q, k, v and the weight; the last has no elements without a weight."""
    if rects is None or weight is None:
        return *scores.backward(grad, q, k, v, kept, out, None, None)[:3], q.new_empty(0)
    form = _form(rects, weight, centers, segments, sigma, limit)
    pairs = Pairs.of(form)
    shape = (len(pairs.key), weight.shape[1])
    dq, dk, dv, biases = scores.backward(grad, q, k, v, kept, out, scores.Added.at(pairs), shape)
    assert biases is not None
    return dq, dk, dv, weight_gradient(biases, form, pairs)


@gathered_scores_backward.register_fake
def _(grad, q, k, v, kept, out, rects, weight, centers, segments, sigma, limit):
    last = q.new_empty(0) if weight is None else weight.new_empty(weight.shape)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), last


def _save_scores(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, rects, weight, centers, ctx.segments, ctx.sigma, ctx.limit, _ = inputs
    out, kept = output
    ctx.save_for_backward(q, k, v, kept, out, rects, weight, centers)


def _scores_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    *found, dweight = gathered_scores_backward(grad.contiguous(), *saved, ctx.segments, ctx.sigma, ctx.limit)
    return *found, None, dweight if saved[6] is not None else None, None, None, None, None, None


gathered_scores.register_autograd(_scores_backward, setup_context=_save_scores)
