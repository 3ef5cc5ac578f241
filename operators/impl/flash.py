"""Attention without a bias by the flash-attn packages: 4 (CuTe DSL, for Hopper and later) or 2.

The one that is installed is used, and 4 if both are. Neither takes an additive bias here. Their layout is
(B, N, H, D). Sources: Dao-AILab/flash-attention, ``flash_attn.cute`` as of flash-attn-4 4.0.0b36 and
``flash_attn.flash_attn_func`` as of flash-attn 2.
"""

from functools import cache
from importlib import metadata

import torch
from torch import Tensor

from operators.spec import Request

_DTYPES = ("float16", "bfloat16")
_MAX_HEAD_SIZE = 256  # elements, of both packages
_HOPPER = 9  # compute capability from which flash-attn-4 is tuned; before, 2 is the better peer


@cache
def installed() -> dict[str, str]:
    """Return name -> version of the installed flash-attn packages, the preferred one first."""
    versions = {}
    for name in ("flash-attn-4", "flash-attn"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def chosen() -> str:
    """Return the name of the package that ``forward`` uses on this machine; empty if none is installed."""
    packages = installed()
    if "flash-attn-4" in packages and torch.cuda.is_available():
        newer = torch.cuda.get_device_capability()[0] >= _HOPPER
        return "flash-attn-4" if newer or "flash-attn" not in packages else "flash-attn"
    return next(iter(packages), "")


def objections(request: Request) -> list[str]:
    """List why this implementation cannot serve ``request``; empty if it can."""
    if request.device != "cuda":
        return [f"flash-attn runs on a GPU, got {request.device}"]
    objections = []
    if not installed():
        objections.append("neither flash-attn-4 nor flash-attn is installed; pip install 'biaswise[flash]'")
    if request.dtype not in _DTYPES:
        objections.append(f"flash-attn computes in {' or '.join(_DTYPES)}, got {request.dtype}")
    if request.head_size > _MAX_HEAD_SIZE or request.head_size % 8:
        objections.append(f"flash-attn takes head sizes 8, 16, ... {_MAX_HEAD_SIZE}, got {request.head_size}")
    return objections


def forward(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Attend without a bias.

    Args:
        q: (B, H, Q, D) float16 or bfloat16, on a GPU.
        k: (B, H, K, D).
        v: (B, H, K, D).
        scale: factor on the content scores.

    Returns:
        (B, H, Q, D).
    """
    inputs = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    if chosen() == "flash-attn-4":
        from flash_attn.cute import flash_attn_func

        out = flash_attn_func(*inputs, softmax_scale=scale)[0]  # the second is the log-sum-exp, or None
    else:
        from flash_attn import flash_attn_func

        out = flash_attn_func(*inputs, softmax_scale=scale)
    return out.transpose(1, 2)
