"""Our Triton kernel: attention with a bias, or a mask, that is a few numbers per query and segment.

Exact, with gradients to q, k, v and the weights, and no tensor of size Q x K. How it works: ``tiles`` and
``lists`` (which queries and keys meet in a rect), ``scores`` (what is added there), ``*_kernels`` (attention
over the lists), ``sizes`` and ``launch`` (block sizes, custom ops). Triton is imported on the first call.
"""

import importlib.util
import os

from torch import Tensor

from operators.forms import RectsForm
from operators.spec import Request

_DTYPES = ("float16", "bfloat16", "float32")
_HEAD_SIZES = (16, 128)  # a matrix instruction takes 16 at least; above 128 registers would spill


def objections(request: Request) -> list[str]:
    """List why the kernel cannot serve ``request``; empty means it can."""
    found = []
    if importlib.util.find_spec("triton") is None:
        found.append("needs the package triton, which is not installed (pip install triton==3.6.0)")
    if request.device == "cpu" and not interpreted():
        found.append(
            "needs a CUDA device; on the CPU it runs in Triton's interpreter alone, for tests "
            "(set TRITON_INTERPRET=1 before Python starts)"
        )
    if request.dtype not in _DTYPES:
        found.append(f"computes in {', '.join(_DTYPES)}, got {request.dtype}")
    smallest, largest = _HEAD_SIZES
    if not smallest <= request.head_size <= largest:
        found.append(f"takes head sizes {smallest} to {largest}, got {request.head_size}")
    if request.keys * request.head_size >= 2**31:
        found.append(
            f"addresses 2^31 elements of a head's keys, got {request.keys} keys of {request.head_size}"
        )
    return found


def interpreted() -> bool:
    """Say whether Triton's interpreter was asked for."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def forward(q: Tensor, k: Tensor, v: Tensor, *, scale: float, rects: RectsForm | None = None) -> Tensor:
    """Attend, with gradients to q, k, v and the weights; the same bits on every run.

    Args:
        q: (B, H, Q, D) float16, bfloat16 or float32, any strides.
        k: (B, H, K, D), likewise.
        v: (B, H, K, D), likewise.
        scale: factor on the content scores.
        rects: what is added; None adds nothing.

    Returns:
        (B, H, Q, D) with the strides of q; 0 for a query that a mask leaves without a key.
    """
    from operators.impl.rects import launch

    if rects is None:
        return launch.attend(q, k, v, scale, launch.Field(launch.Kind.NONE, ((0, 1, k.shape[2]),)))
    segments = tuple((s.offset, s.rows, s.cols) for s in rects.grid.segments)
    if rects.mode == "mask":
        field = launch.Field(launch.Kind.MASK, segments, rects.rects)
    elif rects.gaussian is None:
        field = launch.Field(launch.Kind.WINDOW, segments, rects.rects, rects.weight)
    else:
        centers, sigma, limit = rects.gaussian
        field = launch.Field(
            launch.Kind.GAUSSIAN, segments, rects.rects, rects.weight, centers.detach(), sigma, limit
        )
    return launch.attend(q, k, v, scale, field)
