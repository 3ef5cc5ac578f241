"""Activations that are computed again in the backward pass instead of being kept."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *given: object) -> Tensor:
    """Call a function of tensors without keeping its intermediate results for the backward pass.

    Args:
        function: must not draw random numbers: the generator's state is not restored, because a CUDA graph
            could not restore it. Parameters that it reads must have the same values in the backward pass.
        given: its arguments, which are kept.

    Returns:
        The result of the function.
    """
    if not torch.is_grad_enabled():
        return function(*given)
    result: Tensor = checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)
    return result
