"""Our Triton kernel: attention with a bias, or a mask, that is one rectangle per query and segment.

It is exact, gives gradients to q, k, v and the weights, and forms no tensor of size Q x K. Its parts:

    tiles, lists   which blocks of queries and tiles of keys have a rect in common
    scores         what is added to the scores of a tile
    *_kernels      attention over the lists, forward and backward
    sizes          sizes of blocks and tiles, and compile options
    launch         buffers and custom ops

Triton is imported on the first call.
"""

import importlib.util
import os

from torch import Tensor

from operators.forms import RectsForm
from operators.spec import Request

_DTYPES = ("float16", "bfloat16", "float32")
_HEAD_SIZES = (16, 128)  # a matrix instruction needs at least 16; above 128 registers would spill


def objections(request: Request) -> list[str]:
    """List why the kernel cannot serve ``request``; empty if it can."""
    objections = []
    if importlib.util.find_spec("triton") is None:
        objections.append("needs the package triton, which is not installed (pip install triton==3.6.0)")
    if request.device == "cpu" and not interpreted():
        objections.append("needs a CUDA device (tests on a CPU: set TRITON_INTERPRET=1 before Python starts)")
    if request.dtype not in _DTYPES:
        objections.append(f"computes in {', '.join(_DTYPES)}, got {request.dtype}")
    smallest, largest = _HEAD_SIZES
    if not smallest <= request.head_size <= largest:
        objections.append(f"takes head sizes {smallest} to {largest}, got {request.head_size}")
    if request.keys * request.head_size >= 2**31:
        objections.append(
            f"addresses 2^31 elements of a head's keys, got {request.keys} keys of {request.head_size}"
        )
    return objections


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which the environment variable TRITON_INTERPRET sets."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def forward(q: Tensor, k: Tensor, v: Tensor, *, scale: float, rects_form: RectsForm | None = None) -> Tensor:
    """Attend, with gradients to q, k, v and the weights. Every run gives the same bits.

    Args:
        q: (B, H, Q, D) float16, bfloat16 or float32, any strides.
        k: (B, H, K, D), likewise.
        v: (B, H, K, D), likewise.
        scale: factor on the content scores.
        rects_form: what is added to the scores; None: nothing.

    Returns:
        (B, H, Q, D) with the strides of q; 0 for a query whose mask has no key.
    """
    from operators.impl.rects import launch

    return launch.attend(q, k, v, scale, rects_form)
