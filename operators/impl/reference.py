"""The meaning of every other implementation.

    softmax(scale * q @ k.mT + bias) @ v, and 0 where a query may attend to no key at all.

Forms every score; it is here to be right and readable.
"""

import torch
from torch import Tensor

from operators.spec import Request


def objections(request: Request) -> list[str]:
    """Object to nothing: memory is its only limit."""
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
    dead = scores.detach().amax(dim=-1, keepdim=True) == -torch.inf
    weights = torch.softmax(scores.masked_fill(dead, 0.0), dim=-1)  # a softmax over -inf alone is NaN
    return weights.masked_fill(dead, 0.0) @ v
