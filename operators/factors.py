"""U and w with bias = u @ w.mT, exact or cut off at a rank.

The cut is the best one in the Frobenius norm (Eckart-Young): the projection onto the R leading left
singular vectors, found from the (Q, Q) Gram matrix because Q is tens of times smaller than K.
Source of the use of factors in attention: FlashBias, arXiv:2505.12044.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """A bias as a product.

    Attributes:
        u: (B, H or 1, Q, R), logits.
        w: (B, H or 1, K, R).
        relative_error: (B, H or 1), Frobenius norm of what was cut off over that of the bias; 0 is exact.
    """

    u: Tensor
    w: Tensor
    relative_error: Tensor


def truncate(values: Tensor, rank: int) -> Factors:
    """Cut a dense bias off at a rank.

    Differentiable in ``values`` through w alone: the gradient is that of the projection onto a fixed
    basis. Costs a (Q, Q) eigenproblem per sample and head; it is meant for studies, not for speed.

    Args:
        values: (B, H or 1, Q, K) float, finite.
        rank: R, at least 1 and at most Q.

    Raises:
        ValueError: a rank outside 1..Q, or values that are not finite.
    """
    queries = values.shape[-2]
    if not 1 <= rank <= queries:
        raise ValueError(f"expected a rank between 1 and the number of queries {queries}, got {rank}")
    if not torch.isfinite(values).all():
        raise ValueError(
            "a bias that holds inf or NaN has no factors; use an implementation that takes DENSE"
        )
    exact = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    energy, basis = torch.linalg.eigh(exact @ exact.mT)  # ascending
    kept = basis[..., -rank:].to(values.dtype)
    # Rounding leaves eigenvalues slightly below zero; a bias of zeros has no error to report.
    energy = energy.clamp(min=0)
    total = energy.sum(-1)
    cut = energy[..., : queries - rank].sum(-1)
    relative_error = torch.where(total > 0, cut / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0).sqrt()
    return Factors(kept, values.mT @ kept, relative_error)
