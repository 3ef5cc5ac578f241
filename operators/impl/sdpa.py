"""PyTorch's scaled dot product attention, pinned to one kernel family.

By itself PyTorch picks a family by rules that depend on dtype, mask and gradient, so a study could time
another kernel than it asked for. A pinned family that cannot serve a call fails. The CPU has two of the four
families, math and flash, and flash takes a bias on the CPU only. In all of them a row of -inf gives 0
(PyTorch 2.5 and later; tested). Source: torch.nn.attention.sdpa_kernel. The limits were read from
aten/src/ATen/native/transformers/cuda/sdp_utils.cpp and tried out.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from operators.spec import Request

_HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Pinned:
    """One kernel family and its limits on a GPU.

    Attributes:
        backend: PyTorch's name of the family.
        cpu: whether it has kernels for the CPU.
        cuda_dtypes: dtypes for which it has kernels on a GPU.
        cuda_head_size: its largest head size on a GPU; None: no limit.
        cuda_bias: whether it takes a dense bias on a GPU.
        bias_grad: whether it gives a gradient to the bias, on any device.
        cuda_keys: the fewest keys that it takes on a GPU.
        repeatable: whether PyTorch takes it where all kernels have to be deterministic.
    """

    backend: SDPBackend
    cpu: bool
    cuda_dtypes: tuple[str, ...]
    cuda_head_size: int | None
    cuda_bias: bool
    bias_grad: bool
    cuda_keys: int = 1
    repeatable: bool = True

    def objections(self, request: Request) -> list[str]:
        """List why this family cannot serve ``request``; empty if it can."""
        name = self.backend.name.lower().removesuffix("_attention")
        if request.device == "cpu" and not self.cpu:
            return [f"PyTorch has no {name} kernel on the CPU, only math and flash"]
        objections = []
        if request.kind != "none" and request.bias_grad and not self.bias_grad:
            objections.append(f"the {name} kernel gives no gradient to a bias")
        return objections + (self._objections_of_gpu(request, name) if request.device == "cuda" else [])

    def _objections_of_gpu(self, request: Request, name: str) -> list[str]:
        """List why this family cannot serve ``request`` on a GPU."""
        objections = []
        if request.kind != "none" and not self.cuda_bias:
            objections.append(f"the {name} kernel takes no bias on a GPU")
        if request.dtype not in self.cuda_dtypes:
            objections.append(
                f"the {name} kernel computes in {' or '.join(self.cuda_dtypes)}, got {request.dtype}"
            )
        if request.keys < self.cuda_keys:
            objections.append(f"the {name} kernel takes {self.cuda_keys} keys or more, got {request.keys}")
        if request.deterministic and not self.repeatable:
            objections.append(
                f"the {name} kernel is not deterministic, and torch.use_deterministic_algorithms(True) is on"
            )
        limit = self.cuda_head_size
        if limit is not None and (request.head_size > limit or request.head_size % 8):
            objections.append(
                f"the {name} kernel takes head sizes 8, 16, ... {limit}, got {request.head_size}"
            )
        return objections

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
        """Attend by this kernel family.

        Args:
            q: (B, H, Q, D).
            k: (B, H, K, D).
            v: (B, H, K, D).
            scale: factor on the content scores.
            bias: (B or 1, H or 1, Q, K), dtype of ``q``; None: no bias.

        Returns:
            (B, H, Q, D).

        Raises:
            RuntimeError: the family cannot serve the call.
        """
        alone = bias is not None and bias.requires_grad and not any(t.requires_grad for t in (q, k, v))
        if alone and self.backend is SDPBackend.EFFICIENT_ATTENTION:
            # PyTorch keeps what the backward pass needs only if q, k or v requires a gradient. If the bias
            # alone does, that pass fails: "LSE is not correctly aligned".
            q = _Learning.apply(q, bias)  # type: ignore[no-untyped-call]
        with sdpa_kernel(self.backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


class _Learning(torch.autograd.Function):
    """The query as it is, as a tensor that requires a gradient because the bias does."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, bias: Tensor) -> Tensor:
        """Return the query."""
        return q.view_as(q)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient on to the query."""
        return upstream[0], None


MATH = Pinned(SDPBackend.MATH, True, (*_HALF, "float32", "float64"), None, True, True)
EFFICIENT = Pinned(SDPBackend.EFFICIENT_ATTENTION, False, (*_HALF, "float32"), None, True, True)
FLASH = Pinned(SDPBackend.FLASH_ATTENTION, True, _HALF, 256, False, False)
CUDNN = Pinned(SDPBackend.CUDNN_ATTENTION, False, _HALF, 128, True, False, 2, repeatable=False)
