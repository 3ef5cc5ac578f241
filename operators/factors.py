"""Factors u and w with bias = u @ w.mT, exact or cut off at a rank.

The cut is the best of its rank in the Frobenius norm (Eckart-Young): the projection onto the R leading left
singular vectors. They come from the (Q, Q) Gram matrix, because Q is tens of times smaller than K.
Factors in attention are due to FlashBias, arXiv:2505.12044.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """A bias as a product.

    Attributes:
        u: (B, H or 1, Q, R), logits.
        w: (B, H or 1, K, R).
        relative_error: (B, H or 1), the Frobenius norm of what was cut off divided by that of the bias.
            0 if the factors are exact.
    """

    u: Tensor
    w: Tensor
    relative_error: Tensor


def truncate(values: Tensor, rank: int) -> Factors:
    """Approximate a dense bias by factors of a rank.

    The result is differentiable in ``values`` through w only: the gradient is that of the projection onto a
    fixed basis. The cost is one (Q, Q) eigenvalue problem per sample and head. It is meant for studies, not
    for speed.

    Args:
        values: (B, H or 1, Q, K) float, finite.
        rank: R, at least 1 and at most Q.

    Raises:
        ValueError: the rank is not in 1..Q, or the values are not finite.
    """
    queries = values.shape[-2]
    if not 1 <= rank <= queries:
        raise ValueError(f"expected a rank between 1 and the number of queries {queries}, got {rank}")
    # A compiled graph cannot branch on values: there, eigh refuses them or the result is NaN.
    if not torch.compiler.is_compiling() and not torch.isfinite(values).all():
        raise ValueError(
            "a bias that holds inf or NaN has no factors; use an implementation that takes DENSE"
        )
    exact = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    energy, basis = torch.linalg.eigh(exact @ exact.mT)  # ascending
    kept = basis[..., -rank:].to(values.dtype)
    # Rounding leaves some eigenvalues slightly below zero. A bias of zeros has relative error 0.
    energy = energy.clamp(min=0)
    total = energy.sum(-1)
    cut = energy[..., : queries - rank].sum(-1)
    relative_error = torch.where(total > 0, cut / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0).sqrt()
    return Factors(kept, values.mT @ kept, relative_error)
