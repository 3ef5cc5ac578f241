"""Seeded cases, gradients by name, and the error budget: what the conformance suite and the benchmark share.

No tolerance is written by hand. A result is compared with the reference in fp64, and may be off by twice
what the reference itself is off when it computes in the dtype under test, plus one rounding step. Source
of the rule: Dao-AILab/flash-attention's tests.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import deterministic

from operators.api import attention
from operators.bias import Bias, DenseBias, GaussianBias, GlobalBias, LocalMask, WindowBias
from operators.grid import TokenGrid
from operators.impl import reference
from operators.registry import objections
from operators.spec import Request

Placement = Literal["spread", "one_cell", "borders", "nowhere"]
"""Where the windows of a case lie: anywhere (some invisible), all around one cell, at the maps' corners,
or at no place at all."""

_ORDERS = 4  # draws of the reference's own rounding; the largest error of one draw varies by a factor of two

SATURATION = 5.0  # logits: the largest absolute bias of AQR; a softmax moves no further beyond it


@dataclass(frozen=True)
class Sizes:
    """How large a case is, and where its windows lie.

    Attributes:
        batch: B. heads: H. queries: Q. head_size: D.
        bev: rows and columns of the BEV map.
        cameras: number of cameras, rows and columns of each.
        window: sizes in cells: LiDAR, camera.
        placement: where the windows lie.
        bias_per_head: whether every head has its own weights.
    """

    batch: int
    heads: int
    queries: int
    head_size: int
    bev: tuple[int, int]
    cameras: tuple[int, int, int]
    window: tuple[int, int] = (3, 3)
    placement: Placement = "spread"
    bias_per_head: bool = False

    @property
    def grid(self) -> TokenGrid:
        """The key axis."""
        return TokenGrid.bev_and_cameras(self.bev, self.cameras)

    def __str__(self) -> str:
        """Name the case in a test id."""
        extra = "" if self.placement == "spread" else f"-{self.placement}"
        heads = "-perhead" if self.bias_per_head else ""
        sizes = f"B{self.batch}-H{self.heads}-Q{self.queries}-K{self.grid.num_keys}-D{self.head_size}"
        return f"{sizes}-w{self.window[0]}x{self.window[1]}{extra}{heads}"


@dataclass(frozen=True, eq=False)
class Case:
    """One drawn problem: the tensors that take gradients, and what does not change.

    Attributes:
        kind: the bias kind.
        sizes: its sizes.
        leaves: ``q``, ``k``, ``v`` in the dtype under test; ``weight`` in float32 if the kind has one.
        rects: (B, Q, S, 4) int32.
        centers: (B, Q, S, 2) float32, for a gaussian.
        upstream: (B, H, Q, D), the gradient of the result.
    """

    kind: str
    sizes: Sizes
    leaves: dict[str, Tensor]
    rects: Tensor
    centers: Tensor
    upstream: Tensor

    def bias(self, weight: Tensor | None) -> Bias | None:
        """Build the bias around a weight, in its dtype."""
        grid = self.sizes.grid
        if self.kind == "local":
            return LocalMask(grid, self.rects)
        if weight is None:
            return None
        if self.kind == "dense":
            return DenseBias(weight)
        if self.kind == "global":
            return GlobalBias(grid, weight)
        if self.kind == "window":
            return WindowBias(grid, self.rects, weight)
        # sigma 1.3 cells: no round number, so that a dropped square or half shows
        return GaussianBias(grid, self.rects, weight, self.centers.to(weight.dtype), 1.3, SATURATION * 0.8)

    def request(self, qkv_grad: bool = True, bias_grad: bool = True, rank: int | None = None) -> Request:
        """Describe the call without making it."""
        q, weight, sizes = self.leaves["q"], self.leaves.get("weight"), self.sizes
        return Request(
            kind=self.kind,
            dtype=str(q.dtype).removeprefix("torch."),
            device=q.device.type,
            batch=sizes.batch,
            heads=sizes.heads,
            queries=sizes.queries,
            keys=sizes.grid.num_keys,
            head_size=sizes.head_size,
            segments=0 if self.kind in ("none", "dense") else sizes.grid.num_segments,
            bias_heads=0 if self.kind == "none" else (sizes.heads if sizes.bias_per_head else 1),
            qkv_grad=qkv_grad,
            bias_grad=bias_grad and weight is not None,
            rank=rank,
        )


def make_case(
    kind: str, sizes: Sizes, dtype: torch.dtype, device: str | torch.device = "cpu", seed: int = 0
) -> Case:
    """Draw a case; the same on every device.

    Weights reach past the saturation of AQR (5 logits), and some are 0.
    """
    rng = torch.Generator().manual_seed(seed)
    grid = sizes.grid
    batch, heads, queries, segments = sizes.batch, sizes.heads, sizes.queries, grid.num_segments
    content = (batch, heads, queries, sizes.head_size)
    cells, visible = _cells(sizes, rng)
    leaves = {"q": torch.randn(content, generator=rng)}
    for name in ("k", "v"):
        leaves[name] = torch.randn(batch, heads, grid.num_keys, sizes.head_size, generator=rng)
    leaves = {name: leaf.to(dtype) for name, leaf in leaves.items()}
    last = {"dense": grid.num_keys, "global": 2, "window": segments, "gaussian": segments}.get(kind)
    if last is not None:
        shape = (batch, heads if sizes.bias_per_head else 1, queries, last)
        weight = (torch.rand(shape, generator=rng) * 2 - 1) * SATURATION * 1.2
        leaves["weight"] = weight * (torch.rand(shape, generator=rng) > 0.1)  # a tenth of them 0
    upstream = torch.randn(content, generator=rng).to(dtype)
    wobble = torch.rand(batch, queries, segments, 2, generator=rng) - 0.5
    return Case(
        kind,
        sizes,
        {name: leaf.to(device) for name, leaf in leaves.items()},
        grid.rects_around(cells, visible, sizes.window).to(device),
        (cells + wobble).to(device),
        upstream.to(device),
    )


def _cells(sizes: Sizes, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the windows' middle cells (B, Q, S, 2) and whether they are seen (B, Q, S)."""
    shape = (sizes.batch, sizes.queries, sizes.grid.num_segments)
    limits = torch.tensor([[s.rows, s.cols] for s in sizes.grid.segments])
    if sizes.placement == "borders":
        corner = torch.randint(0, 2, (*shape, 2), generator=rng)
        return corner * (limits - 1), torch.ones(shape, dtype=torch.bool)
    if sizes.placement == "one_cell":
        return (limits // 2).expand(*shape, 2), torch.ones(shape, dtype=torch.bool)
    cells = (torch.rand(*shape, 2, generator=rng) * limits).long()
    seen = torch.rand(shape, generator=rng) > 0.4  # four in ten have no window in a segment
    return cells, seen if sizes.placement == "spread" else torch.zeros(shape, dtype=torch.bool)


def outputs_and_grads(
    case: Case, impl: str, *, grads: str = "all", rank: int | None = None
) -> dict[str, Tensor]:
    """Run a case by one implementation, forward and backward.

    Args:
        case: what to run.
        impl: by what.
        grads: ``all``, ``inputs`` (q, k, v alone) or ``none``.
        rank: for ``lowrank``.

    Returns:
        ``out`` and the gradients by leaf, see ``results``.
    """
    leaves = {}
    for name, leaf in case.leaves.items():
        wanted = grads == "all" or (grads == "inputs" and name != "weight")
        leaves[name] = leaf.detach().clone().requires_grad_(wanted)
    bias = case.bias(leaves.get("weight"))
    out = attention(leaves["q"], leaves["k"], leaves["v"], bias, impl=impl, rank=rank)
    return results(out, leaves, None if grads == "none" else case.upstream)


def gradients_served(impl: str, case: Case) -> str | None:
    """Return the most an implementation gives for a case: ``all``, ``inputs``, ``none``; None: not even that."""
    for name, qkv, bias in (("all", True, True), ("inputs", True, False), ("none", False, False)):
        if not objections(impl, case.request(qkv, bias)):
            return name
    return None


@dataclass(frozen=True, eq=False)
class Oracle:
    """What a result should be, and how far off it may be.

    Attributes:
        exact: the reference in float64, by name.
        allowed: largest absolute error, by name.
    """

    exact: dict[str, Tensor]
    allowed: dict[str, float]

    def used(self, actual: dict[str, Tensor]) -> dict[str, float]:
        """Return by name how much of its budget a result uses up: at most 1 passes, NaN uses up infinity."""
        found = {}
        for name, value in actual.items():
            error = (value.double() - self.exact[name]).abs().max().item()
            budget = self.allowed[name]
            found[name] = (
                0.0 if error == 0 else error / budget if budget > 0 and math.isfinite(error) else math.inf
            )
        return found

    def check(self, actual: dict[str, Tensor]) -> None:
        """Refuse results that are over their budget.

        Raises:
            AssertionError: naming them.
        """
        over = {name: ratio for name, ratio in self.used(actual).items() if not ratio <= 1}
        assert not over, "error over budget: " + ", ".join(
            f"{name} {ratio:.3g} times" for name, ratio in over.items()
        )


def make_oracle(
    leaves: dict[str, Tensor], bias_of: Callable[[Tensor | None], Bias | None], upstream: Tensor | None = None
) -> Oracle:
    """Compute the reference in float64, and its own error in the dtype under test.

    That error is one draw of rounding; the largest of a few, with the keys in other orders, is steadier.

    Args:
        leaves: ``q``, ``k``, ``v`` and perhaps ``weight``.
        bias_of: builds the bias from the weight.
        upstream: gradient of the result; None: the output alone.
    """
    exact = _reference(leaves, bias_of, upstream, torch.float64, order=None)
    worst = dict.fromkeys(exact, 0.0)
    rng = torch.Generator().manual_seed(0)
    for draw in range(_ORDERS):
        order = torch.randperm(leaves["k"].shape[2], generator=rng).to(leaves["k"].device) if draw else None
        for name, value in _reference(leaves, bias_of, upstream, None, order).items():
            worst[name] = max(worst[name], (value.double() - exact[name]).abs().max().item())
    # Plus one step of the largest value, for a reference that happens to be exact.
    allowed = {
        name: 2
        * (
            error
            + torch.finfo(leaves[name.removeprefix("d") if name != "out" else "q"].dtype).eps
            * exact[name].abs().max().item()
        )
        for name, error in worst.items()
    }
    return Oracle(exact, allowed)


def _reference(
    leaves: dict[str, Tensor],
    bias_of: Callable[[Tensor | None], Bias | None],
    upstream: Tensor | None,
    dtype: torch.dtype | None,
    order: Tensor | None,
) -> dict[str, Tensor]:
    """Run the reference on leaves cast to ``dtype``, with the keys taken in ``order``."""
    own = {
        n: leaf.detach().to(dtype or leaf.dtype).requires_grad_(upstream is not None)
        for n, leaf in leaves.items()
    }
    bias = bias_of(own.get("weight"))
    dense = None if bias is None else bias.dense(own["q"].dtype)
    k, v = own["k"], own["v"]
    if order is not None:
        k, v, dense = k[:, :, order], v[:, :, order], None if dense is None else dense[..., order]
    out = reference.forward(own["q"], k, v, scale=k.shape[-1] ** -0.5, bias=dense)
    return results(out, own, upstream)


def results(out: Tensor, leaves: dict[str, Tensor], upstream: Tensor | None) -> dict[str, Tensor]:
    """Return ``out`` and, given its gradient, those of the leaves: ``dq``, ``dk``, ``dv``, ``dweight``."""
    found = {"out": out.detach()}
    if upstream is not None:
        torch.autograd.backward(out, upstream.to(out.dtype))
        found |= {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return found


def check_case(case: Case, impl: str, grads: str = "all") -> None:
    """Hold an implementation against the fp64 reference on one case, output and gradients."""
    oracle = make_oracle(case.leaves, case.bias, None if grads == "none" else case.upstream)
    with poisoned_memory(case.leaves["q"].device):
        actual = outputs_and_grads(case, impl, grads=grads)
    oracle.check(actual)


@contextmanager
def poisoned_memory(device: torch.device) -> Iterator[None]:
    """Fill fresh memory with NaN, so that an element nobody writes is seen.

    On the CPU by PyTorch's own switch (it needs deterministic mode). On a GPU that mode would take kernels
    away, so NaN is written through the caching allocator's free memory instead, which then is handed out.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        blocks = [
            torch.full((1 << size,), torch.nan, device=device) for size in range(8, 27)
        ]  # 1 kB .. 256 MB
        del blocks
        yield
        return
    settings: Any = deterministic  # its switch is a property of the module, which type checkers do not see
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            # Determinism is not what is tested here; ops that lack it may run.
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]
