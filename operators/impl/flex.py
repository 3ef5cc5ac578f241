"""Attention by FlexAttention: PyTorch compiles the bias, a function of indices, into its kernel.

PyTorch compiles once per kind of bias and per shape. Without compilation FlexAttention forms all scores (95
GB in one case). PyTorch falls back to that form silently, for example after eight compilations. Here the call
fails instead.

The CPU is refused. With PyTorch 2.13 its kernel gave wrong results for a global bias after a change of shape
(error 0.9), did not compile the local mask, and had no backward pass. On a GPU two backward passes do not
compile, because their tiles need more shared memory than the 227 kB of an H200 (PyTorch 2.11): that of the
gaussian bias (257 kB), and that of a dense bias at head size 128 (256 kB).
Source: torch.nn.attention.flex_attention.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from operators.score_mods import ScoreMod
from operators.spec import Request

_DTYPES = ("float16", "bfloat16", "float32")
_MIN_HEAD_SIZE = 16  # elements: the smallest tile of Triton's matrix product
_MAX_HEAD_SIZE_DENSE = (
    64  # the largest head size at which the backward pass of a dense bias was seen to compile
)
_MAX_COMPILATIONS = (
    64  # after these the call fails; PyTorch's default of 8 is less than the shapes of a model
)


def objections(request: Request) -> list[str]:
    """List why this implementation cannot serve ``request``; empty if it can."""
    if request.device != "cuda":
        return [
            f"FlexAttention is used on a GPU only (on a CPU its results were wrong), got {request.device}"
        ]
    objections = []
    grad = request.qkv_grad or request.bias_grad
    if request.kind == "gaussian" and grad:
        objections.append("FlexAttention's backward of the gaussian bias does not fit a GPU's shared memory")
    if request.kind == "dense" and grad and request.head_size > _MAX_HEAD_SIZE_DENSE:
        objections.append(
            "FlexAttention's backward of a dense bias does not fit a GPU's shared memory at head sizes over "
            f"{_MAX_HEAD_SIZE_DENSE}, got {request.head_size}"
        )
    if request.dtype not in _DTYPES:
        objections.append(f"FlexAttention computes in {', '.join(_DTYPES)}, got {request.dtype}")
    if request.head_size < _MIN_HEAD_SIZE:
        objections.append(f"FlexAttention takes head sizes from {_MIN_HEAD_SIZE} on, got {request.head_size}")
    return objections


def forward(q: Tensor, k: Tensor, v: Tensor, *, scale: float, score_mod: ScoreMod | None = None) -> Tensor:
    """Attend by the compiled kernel.

    Args:
        q: (B, H, Q, D).
        k: (B, H, K, D).
        v: (B, H, K, D).
        scale: factor on the content scores.
        score_mod: the bias as a function of (score, b, h, q, k); None: no bias.

    Returns:
        (B, H, Q, D).

    Raises:
        RuntimeError: compilation is off, or there were more shapes than PyTorch compiles for.
    """
    if torch.compiler.is_compiling():  # a part of the caller's graph: PyTorch 2.11 traces no config.patch
        return _traced(q, k, v, score_mod, scale)
    with torch._dynamo.config.patch(recompile_limit=_MAX_COMPILATIONS):
        return _compiled()(q, k, v, score_mod, scale)


@cache
def _compiled() -> Callable[[Tensor, Tensor, Tensor, ScoreMod | None, float], Tensor]:
    """Compile, once per process. ``fullgraph`` makes a fallback to the eager form an error."""
    return torch.compile(_traced, fullgraph=True, dynamic=False)


def _traced(q: Tensor, k: Tensor, v: Tensor, score_mod: ScoreMod | None, scale: float) -> Tensor:
    """Call FlexAttention while it is traced; refuse to run as plain Python."""
    if not torch.compiler.is_compiling():
        raise RuntimeError(
            "FlexAttention would run its eager form, which forms all scores, because compilation is off "
            "(TORCH_COMPILE_DISABLE or torch.compiler.set_stance); turn it on, or use another implementation"
        )
    return flex_attention(q, k, v, score_mod=score_mod, scale=scale)
