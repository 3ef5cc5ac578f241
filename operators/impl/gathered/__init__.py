"""Attention on a CPU that touches only the keys that a window or a mask touches.

No tensor of a bias or mask for all pairs is made. Under the local mask (``rows``) every query attends to the
keys in its windows, which are gathered. With a window or gaussian bias, or none (``scores``), the scores are
computed block by block, and the bias is added at the keys inside the windows. Both are exact, with all
gradients. ``pairs`` lists the keys inside the windows. ``ops`` hides all this from ``torch.compile``.

For a backward pass ``scores`` keeps the probabilities, as ``sdpa_math`` does; otherwise it keeps one block.
"""

from functools import partial

import torch
from torch import Tensor

from operators.forms import RectsForm
from operators.impl.gathered import ops, rows, scores
from operators.impl.gathered.biases import biases_of
from operators.impl.gathered.pairs import Pairs
from operators.spec import Request

_DTYPES = ("float32", "float64")


def objections(request: Request) -> list[str]:
    """List why this implementation cannot serve ``request``; empty if it can."""
    objections = []
    if request.device != "cpu":
        objections.append(f"gathers keys on a CPU, got {request.device}; rects does the same on a GPU")
    if request.dtype not in _DTYPES:
        objections.append(f"computes in {' or '.join(_DTYPES)}, got {request.dtype}")
    if request.kind == "global":
        objections.append("gathers the keys of windows, and a global bias has none; lowrank is exact for it")
    return objections


def forward(q: Tensor, k: Tensor, v: Tensor, *, scale: float, rects_form: RectsForm | None = None) -> Tensor:
    """Attend.

    Args:
        q: (B, H, Q, D) float32 or float64.
        k: (B, H, K, D); under a mask (B, 1, K, D) too, for all heads together.
        v: as ``k``.
        scale: factor on the content scores.
        rects_form: a mask, or a bias to add; None: no bias.

    Returns:
        (B, H, Q, D).
    """
    if torch.compiler.is_compiling():
        return _traced(q * scale, k, v, rects_form)
    if rects_form is None:
        return scores.attend(q * scale, k, v, None, None)
    pairs = Pairs.of(rects_form)
    if rects_form.weight is None:  # a mask
        return rows.attend(q * scale, k, v, partial(rows.attend_jointly, pairs=pairs))
    biases = biases_of(rects_form, pairs).to(q.dtype)
    return scores.attend(q * scale, k, v, scores.Added.at(pairs), biases)


def _traced(q: Tensor, k: Tensor, v: Tensor, rects_form: RectsForm | None) -> Tensor:
    """Attend through custom ops; arguments as for ``forward``, q scaled."""
    if rects_form is None or rects_form.weight is not None:
        return ops.attend_scores(q, k, v, rects_form)
    return rows.attend(q, k, v, partial(ops.attend_rows, form=rects_form))
