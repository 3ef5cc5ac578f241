"""What is added to the score of every pair, and the gradient to the weights."""

import torch
from torch import Tensor

from operators.forms import GaussianField, RectsForm
from operators.impl.gathered.pairs import Pairs


def biases_of(form: RectsForm, pairs: Pairs) -> Tensor:
    """Return what is added to the score of every pair, (N, H or 1) in logits; gradients reach the weight."""
    assert form.weight is not None  # of a mask nothing is asked
    weight = form.weight.movedim(1, -1).flatten(0, 2).index_select(0, pairs.rect)
    if form.gaussian is None:
        return weight
    return (weight * _fall(form.gaussian, pairs, weight.dtype)).clamp(
        -form.gaussian.limit, form.gaussian.limit
    )


def weight_gradient(grad: Tensor, form: RectsForm, pairs: Pairs) -> Tensor:
    """Return the gradient to the weight (B, H or 1, Q, S) from that to ``biases_of``."""
    assert form.weight is not None
    weight = form.weight.movedim(1, -1)  # (B, Q, S, H or 1)
    grad = grad.to(weight.dtype)
    if form.gaussian is not None:
        fall = _fall(form.gaussian, pairs, weight.dtype)
        raw = weight.flatten(0, 2).index_select(0, pairs.rect) * fall
        grad = torch.where(raw.abs() <= form.gaussian.limit, grad * fall, 0.0)
    found = grad.new_zeros(weight.shape)
    found.flatten(0, 2).index_add_(0, pairs.rect, grad)
    return found.movedim(-1, 1).contiguous()


def _fall(field: GaussianField, pairs: Pairs, dtype: torch.dtype) -> Tensor:
    """Return the fall-off from a window's centre at every pair, (N, 1)."""
    centers = field.centers.to(dtype).flatten(0, 2)[pairs.rect]
    squared = ((pairs.cell.to(dtype) - centers) ** 2).sum(dim=-1, keepdim=True)
    return torch.exp(squared * (-0.5 / field.sigma**2))
