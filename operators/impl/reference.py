"""The definition that all other implementations are tested against.

    softmax(scale * q @ k.mT + bias) @ v, and 0 for a query that may attend to no key.

It forms all scores. It is written to be correct and readable, not fast.
"""

import torch
from torch import Tensor

from operators.spec import Request


def objections(request: Request) -> list[str]:
    """Return no objections: only memory limits this implementation."""
    return []


def forward(q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
    """Attend.

    Args:
        q: (B, H, Q, D).
        k: (B, H, K, D).
        v: (B, H, K, D).
        scale: factor on the content scores.
        bias: (B or 1, H or 1, Q, K) in logits; may hold -inf.

    Returns:
        (B, H, Q, D).
    """
    scores = scale * (q @ k.mT)
    if bias is None:
        return torch.softmax(scores, dim=-1) @ v
    scores = scores + bias
    no_key = scores.detach().amax(dim=-1, keepdim=True) == -torch.inf
    weights = torch.softmax(scores.masked_fill(no_key, 0.0), dim=-1)  # the softmax of a row of -inf is NaN
    return weights.masked_fill(no_key, 0.0) @ v
