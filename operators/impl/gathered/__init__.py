"""Attention on a CPU that touches only the keys that a window or a mask touches.

No tensor of a bias or mask for all pairs is made. Under the local mask (``rows``) every query attends to the
keys in its windows, which are gathered. With a window or gaussian bias, or none (``scores``), the scores are
computed block by block, and the bias is added at the keys inside the windows. Both are exact, with all
gradients. ``pairs`` lists the keys inside the windows.

For a backward pass ``scores`` keeps the probabilities, as ``sdpa_math`` does; otherwise it keeps one block.
"""

import torch
from torch import Tensor

from operators.forms import RectsForm
from operators.impl.gathered import rows, scores
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
    if rects_form is None:
        return scores.attend(q * scale, k, v, None, None)
    pairs = Pairs.of(rects_form)
    if rects_form.weight is None:  # a mask
        return rows.attend(q * scale, k, v, pairs)
    biases = _biases(rects_form, rects_form.weight, pairs).to(q.dtype)
    return scores.attend(q * scale, k, v, pairs, biases)


def _biases(form: RectsForm, weight: Tensor, pairs: Pairs) -> Tensor:
    """Return what is added to the score of every pair, (N, H or 1) in logits; gradients reach the weight."""
    weight = weight.movedim(1, -1).flatten(0, 2).index_select(0, pairs.rect)
    if form.gaussian is None:
        return weight
    field = form.gaussian
    centers = field.centers.to(weight.dtype).flatten(0, 2)[pairs.rect]
    squared = ((pairs.cell.to(weight.dtype) - centers) ** 2).sum(dim=-1, keepdim=True)
    fall = torch.exp(squared * (-0.5 / field.sigma**2))
    return (weight * fall).clamp(-field.limit, field.limit)
