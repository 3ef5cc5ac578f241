"""Stand-ins for parts of the decoder in training, for one arm or for all arms of a cohort by batched calls.

They have the shapes, the precision and the dropout of the decoder, and no bias.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Call = Callable[[], Any]
Weights = dict[str, Tensor]
PARTS = ("rows", "keys", "cross")
NEAR = 0.1
"""Of a norm: bfloat16 in another order of sums, through all layers. Another arm would be 1.4 off."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the decoder in training. Queries are 900 and ten noisy copies of some 50 boxes, padded."""

    batch: int
    keys: int
    own_ms: float
    """GPU time of an arm's own part of a step, as the profiler has it."""
    queries: int = 1408
    layers: int = 6
    channels: int = 256
    hidden: int = 1024
    heads: int = 8
    trained: int = 11_200_000
    tensors: int = 183
    """In which the parameters that train lie."""


SIZES = {
    "r50": Sizes(batch=4, keys=22_384, own_ms=34.1),
    "vov": Sizes(batch=2, keys=56_400, own_ms=33.7),
    "tiny": Sizes(2, 40, 1.0, 30, layers=2, channels=16, hidden=32, heads=2, trained=700, tensors=7),
}


def weights_of(name: str, sizes: Sizes, arms: int, device: str) -> list[Weights]:
    """Return the parameters of a part for every layer, (arms, ...) each, float32."""
    c, h = sizes.channels, sizes.hidden
    linears = {
        "qk": (2 * c, c),
        "v": (c, c),
        "out": (c, c),
        "query": (c, c),
        "back": (c, c),
        "up": (h, c),
        "down": (c, h),
    }
    shapes = {"rows": linears, "keys": {"key": (c, c), "value": (c, c)}, "cross": {}}[name]
    norms = [f"norm{i}" for i in range(3)] if name == "rows" else []
    layers = []
    for _ in range(sizes.layers):
        made = {n: torch.randn(arms, *s, device=device) / s[1] ** 0.5 for n, s in shapes.items()}
        made |= {n: 1 + 0.1 * torch.randn(arms, c, device=device) for n in norms}
        made |= {f"{n}.bias": 0.1 * torch.randn(x.shape[:2], device=device) for n, x in made.items()}
        layers.append(made)
    return layers


def inputs_of(name: str, sizes: Sizes, arms: int, device: str) -> list[Tensor]:
    """Return the inputs of a part, (arms, rows, C) each."""
    few, many, half = sizes.batch * sizes.queries, sizes.batch * sizes.keys, torch.bfloat16
    shapes = {
        "rows": [(few, torch.float32), (few, torch.float32)],
        "keys": [(many, half), (many, half)],
        "cross": [(few, half), (many, half), (many, half)],
    }
    return [torch.randn(arms, n, sizes.channels, device=device).to(dtype) for n, dtype in shapes[name]]


def mask_of(sizes: Sizes, device: str) -> Tensor:
    """Return (Q, Q): copies of the boxes see themselves and the learned queries, as in training."""
    group = torch.arange(sizes.queries, device=device) * 25 // sizes.queries
    group = group.where(group < 10, -1)
    hidden = (group[:, None] != group) & (group != -1)
    return torch.zeros_like(hidden, dtype=torch.bfloat16).masked_fill(hidden, -torch.inf)


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    """Map (rows, C) of one arm, or (arms, rows, C) by one batched product."""
    if x.dim() == 2:
        return F.linear(x, w[name], w[f"{name}.bias"])
    return torch.baddbmm(w[f"{name}.bias"][:, None], x, w[name].mT)


def norm(x: Tensor, w: Weights, name: str) -> Tensor:
    """Normalise the rows, with an affine map for each arm."""
    if x.dim() == 2:
        return F.layer_norm(x, x.shape[-1:], w[name], w[f"{name}.bias"])
    return torch.addcmul(w[f"{name}.bias"][:, None], F.layer_norm(x, x.shape[-1:]), w[name][:, None])


class Part:
    """A part of the decoder, for one arm or for all of them.

    Attributes:
        found: results, then gradients of inputs and parameters, of the last run.
    """

    def __init__(self, name: str, sizes: Sizes, inputs: Sequence[Tensor], weights: Sequence[Weights]) -> None:
        self._sizes = sizes
        self._forward = {"rows": self._rows, "keys": self._keys, "cross": self._cross}[name]
        self._inputs = [x.detach().clone().requires_grad_() for x in inputs]
        self._weights = [{n: x.detach().clone().requires_grad_() for n, x in w.items()} for w in weights]
        rows = inputs[0].shape[-2:]  # of each result too; other gradients than ones, whose norms vanish
        self._seed = torch.arange(rows.numel(), device=inputs[0].device).view(rows).cos()
        self._mask = mask_of(sizes, inputs[0].device.type)
        self.found: tuple[Tensor, ...] = ()

    def run(self, drop: float = 0.1) -> None:
        """Compute forward and backward; the memory of the last run is free."""
        self.found = ()
        device = self._inputs[0].device.type
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            results = self._forward(drop)
        leaves = [*self._inputs, *(x for w in self._weights for x in w.values())]
        grads = torch.autograd.grad(
            results, leaves, [self._seed.to(x.dtype).expand(x.shape).contiguous() for x in results]
        )
        self.found = (*(x.detach() for x in results), *grads)

    def _rows(self, drop: float) -> list[Tensor]:
        x, pos = self._inputs
        c = self._sizes.channels
        for w in self._weights:
            q, k = linear(x + pos, w, "qk").split(c, dim=-1)
            seen = self._attend(q, k, linear(x, w, "v"), self._mask)
            x = norm(x + F.dropout(linear(seen, w, "out"), drop), w, "norm0")
            x = norm(x + F.dropout(linear(linear(x + pos, w, "query"), w, "back"), drop), w, "norm1")
            hidden = F.dropout(linear(x, w, "up").relu(), drop)
            x = norm(x + F.dropout(linear(hidden, w, "down"), drop), w, "norm2")
        return [x]

    def _keys(self, _drop: float) -> list[Tensor]:
        given = dict(zip(("key", "value"), self._inputs, strict=True))
        return [linear(x, w, name) for w in self._weights for name, x in given.items()]

    def _cross(self, _drop: float) -> list[Tensor]:
        return [self._attend(*self._inputs, None) for _ in self._weights]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within each sample of each arm."""
        batch, heads = self._sizes.batch, self._sizes.heads
        split = [
            x.reshape(-1, x.shape[-2] // batch, heads, x.shape[-1] // heads).transpose(1, 2)
            for x in (q, k, v)
        ]
        if mask is not None:
            mask = mask.expand(len(split[0]), heads, -1, -1)
        with _kernel(masked=mask is not None, on_gpu=q.is_cuda):
            out = F.scaled_dot_product_attention(*split, attn_mask=mask)
        return out.transpose(1, 2).reshape(q.shape)


def _kernel(masked: bool, on_gpu: bool) -> AbstractContextManager[None]:
    """Choose what training chooses: flash attention takes no mask."""
    if not on_gpu:
        return nullcontext()
    return sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION if masked else SDPBackend.FLASH_ATTENTION)


def parts_of(name: str, sizes: Sizes, arms: int, device: str) -> tuple[list[Part], Part]:
    """Return a part once for each arm and once for all, of equal numbers; refuse it if results differ."""
    weights, inputs = weights_of(name, sizes, arms, device), inputs_of(name, sizes, arms, device)
    each = [
        Part(name, sizes, [x[i] for x in inputs], [{n: x[i] for n, x in w.items()} for w in weights])
        for i in range(arms)
    ]
    every = Part(name, sizes, inputs, weights)
    every.run(drop=0.0)
    worst = 0.0
    for i, part in enumerate(each):
        part.run(drop=0.0)
        for one, joint in zip(part.found, every.found, strict=True):
            off = (one.float() - joint[i].float()).norm() / one.float().norm()
            worst = max(worst, float(off))
        part.found = ()
    print(f"{name}: batched is {worst:.1e} off", flush=True)
    if not worst <= NEAR:
        raise SystemExit(
            f"{name}: batched results are {worst:.1e} of their norm off, expected at most {NEAR}"
        )
    return each, every
