"""Activations that are computed again in the backward pass instead of being kept."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *given: object) -> Tensor:
    """Call a function of tensors; keep none of its intermediate results.

    Args:
        function: draws no random number. (The generator's state is not put back: a CUDA graph could not.)
            Parameters of a module that it reads must hold the same numbers at the second time.
        given: its arguments, which are kept.

    Returns:
        What the function returns.
    """
    if not torch.is_grad_enabled():
        return function(*given)
    found: Tensor = checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)
    return found
