"""Attention with a low-rank bias: the factors are appended to q and k.

    softmax(scale * q @ k.mT + u @ w.mT) @ v  ==  softmax(scale * [q, u / scale] @ [k, w].mT) @ v

No (Q, K) tensor is formed. The memory is O((Q + K) R), and a fused kernel without a bias computes it. The
kernel is PyTorch's flash, pinned, on the CPU and on a GPU. On a GPU it needs one head size for q, k and v, in
steps of 8, so all three are padded with zeros and the padding is cut off the result. The global bias is exact
(rank 2). Any other bias is cut off at the rank that the caller names.
Source: FlashBias, arXiv:2505.12044.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from operators.spec import GLOBAL_RANK, Request

_HEAD_SIZE_STEP = 8  # elements, of the flash kernel
_MAX_HEAD_SIZE = 256  # elements, of the flash kernel
_CUDA_DTYPES = ("float16", "bfloat16")  # of the flash kernel on a GPU


def objections(request: Request) -> list[str]:
    """List why this implementation cannot serve ``request``; empty if it can."""
    objections = []
    rank = request.rank if request.kind != "global" else GLOBAL_RANK
    if request.kind == "global" and request.rank is not None and request.rank < GLOBAL_RANK:
        objections.append(
            f"the global bias has rank {GLOBAL_RANK}, exactly and cheaply; got rank={request.rank}"
        )
    rank_fits = request.rank is None or 1 <= request.rank <= (request.queries or request.rank)
    if not rank_fits:  # with any number of queries, truncate refuses a rank above it
        objections.append(f"expected a rank between 1 and the {request.queries} queries, got {request.rank}")
    if request.device == "cpu":
        return objections
    if request.dtype not in _CUDA_DTYPES:
        objections.append(f"the flash kernel computes in {' or '.join(_CUDA_DTYPES)}, got {request.dtype}")
    if request.head_size + (rank or 0) > _MAX_HEAD_SIZE:
        objections.append(
            f"the flash kernel takes head sizes up to {_MAX_HEAD_SIZE}, got {request.head_size} + rank {rank}"
        )
    return objections


def forward(q: Tensor, k: Tensor, v: Tensor, *, scale: float, u: Tensor, w: Tensor) -> Tensor:
    """Attend with the bias ``u @ w.mT`` added to ``scale * q @ k.mT``.

    Args:
        q: (B, H, Q, D). It sets dtype and device of the result.
        k: (B, H, K, D).
        v: (B, H, K, D).
        scale: factor on the content scores, positive.
        u: (B, H or 1, Q, R), any float dtype; ``u @ w.mT`` is in logits.
        w: (B, H or 1, K, R), any float dtype.

    Returns:
        (B, H, Q, D).
    """
    size = q.shape[-1]
    # The scale is applied to u, not to q: q is already rounded to its dtype and would be rounded twice.
    wide_q = _joined(q, u / scale)
    wide_k = _joined(k, w)
    wide_v = F.pad(v, (0, wide_q.shape[-1] - size))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=scale)[..., :size]


def _joined(content: Tensor, factor: Tensor) -> Tensor:
    """Append the factor (B, H or 1, N, R) to (B, H, N, D), and zeros up to a multiple of 8 elements."""
    factor = factor.to(content.dtype).expand(*content.shape[:3], -1)
    padding = -(content.shape[-1] + factor.shape[-1]) % _HEAD_SIZE_STEP
    return F.pad(torch.cat((content, factor), dim=-1), (0, padding))
