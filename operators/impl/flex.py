"""PyTorch compiles the bias, written as a function of indices, into its kernel.

It is compiled for every kind of bias and every shape it meets. Uncompiled, FlexAttention forms all scores
(95 GB were seen), and PyTorch falls back to that form unseen, for one after eight compilations. Here the
call fails instead. The CPU is refused: with PyTorch 2.13 its kernel gave wrong results for a global bias
after a change of shape (error 0.9), did not compile the local mask, and has no backward. Two backwards do not
compile on a GPU, as their tiles ask for more shared memory than the 227 kB there are (PyTorch 2.11, H200):
that of the gaussian bias, 257 kB, and that of a dense bias at head size 128, 256 kB.
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
_NARROWEST = 16  # elements: the smallest tile of Triton's matrix product
_WIDEST_DENSE = 64  # head size that its backward of a dense bias was seen to serve
_SHAPES = (
    64  # compilations before PyTorch gives up (and this fails); its own 8 are fewer than a model's shapes
)


def objections(request: Request) -> list[str]:
    """List why this implementation cannot serve ``request``."""
    if request.device != "cuda":
        return [f"FlexAttention is trusted on a GPU alone (a CPU gave wrong results), got {request.device}"]
    found = []
    if request.kind == "gaussian" and (request.qkv_grad or request.bias_grad):
        found.append("FlexAttention's backward of the gaussian bias does not fit a GPU's shared memory")
    wide = request.head_size > _WIDEST_DENSE
    if request.kind == "dense" and wide and (request.qkv_grad or request.bias_grad):
        found.append(
            "FlexAttention's backward of a dense bias does not fit a GPU's shared memory at head sizes over "
            f"{_WIDEST_DENSE}, got {request.head_size}"
        )
    if request.dtype not in _DTYPES:
        found.append(f"FlexAttention computes in {', '.join(_DTYPES)}, got {request.dtype}")
    if request.head_size < _NARROWEST:
        found.append(f"FlexAttention takes head sizes from {_NARROWEST} on, got {request.head_size}")
    return found


def forward(q: Tensor, k: Tensor, v: Tensor, *, scale: float, score_mod: ScoreMod | None = None) -> Tensor:
    """Attend, compiled or not at all.

    Args:
        q: (B, H, Q, D).
        k: (B, H, K, D).
        v: (B, H, K, D).
        scale: factor on the content scores.
        score_mod: the bias as a function of (score, b, h, q, k).

    Returns:
        (B, H, Q, D).

    Raises:
        RuntimeError: PyTorch would run the eager form, or met more shapes than it compiles for.
    """
    with torch._dynamo.config.patch(recompile_limit=_SHAPES):
        return _compiled()(q, k, v, score_mod, scale)


@cache
def _compiled() -> Callable[[Tensor, Tensor, Tensor, ScoreMod | None, float], Tensor]:
    """Compile once a process; a whole graph, so that giving up is an error."""
    return torch.compile(_traced, fullgraph=True, dynamic=False)


def _traced(q: Tensor, k: Tensor, v: Tensor, score_mod: ScoreMod | None, scale: float) -> Tensor:
    """Call FlexAttention while being traced; refuse to run as plain Python."""
    if not torch.compiler.is_compiling():
        raise RuntimeError(
            "FlexAttention would run its eager form, which forms all scores, because compilation is off "
            "(TORCH_COMPILE_DISABLE or torch.compiler.set_stance); turn it on, or take another"
        )
    return flex_attention(q, k, v, score_mod=score_mod, scale=scale)
