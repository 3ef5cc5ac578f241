"""Seeded cases and their gradients by name: what the conformance suite and the benchmark share.

Hostile cases are made by ``Sizes``: windows cut at borders, all around one cell, or nowhere; one query; keys
that are no multiple of anything. Memory can be poisoned with NaN, so that what nobody writes is seen.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import deterministic

from operators.api import attention
from operators.bias import DenseBias, GaussianBias, GlobalBias, LocalMask, WindowBias
from operators.forms import Bias
from operators.grid import TokenGrid
from operators.registry import objections
from operators.spec import Request
from operators.testing.oracle import make_oracle, results

Placement = Literal["spread", "one_cell", "borders", "nowhere", "around"]
"""Where the windows of a case lie: anywhere (some invisible), all around one cell, at the maps' corners,
at no place at all, or as a decoder's queries lie around a car (each in one or two cameras)."""

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
    """Draw a case: windows are the same on every device, content is drawn where it is used.

    Weights reach past the saturation of AQR (5 logits), and some are 0.
    """
    rng = torch.Generator().manual_seed(seed)
    on_gpu = torch.device(device).type == "cuda"  # it draws in microseconds what takes a CPU seconds
    there = torch.Generator(device).manual_seed(seed) if on_gpu else rng
    grid = sizes.grid
    batch, heads, queries, segments = sizes.batch, sizes.heads, sizes.queries, grid.num_segments
    content = (batch, heads, queries, sizes.head_size)
    cells, visible = _cells(sizes, rng)
    keys = (batch, heads, grid.num_keys, sizes.head_size)
    leaves = {
        name: torch.randn(shape, generator=there, device=device).to(dtype)
        for name, shape in (("q", content), ("k", keys), ("v", keys))
    }
    last = {"dense": grid.num_keys, "global": 2, "window": segments, "gaussian": segments}.get(kind)
    if last is not None:
        shape = (batch, heads if sizes.bias_per_head else 1, queries, last)
        weight = (torch.rand(shape, generator=rng) * 2 - 1) * SATURATION * 1.2
        leaves["weight"] = weight * (torch.rand(shape, generator=rng) > 0.1)  # a tenth of them 0
    upstream = torch.randn(content, generator=there, device=device).to(dtype)
    wobble = torch.rand(batch, queries, segments, 2, generator=rng) - 0.5
    return Case(
        kind,
        sizes,
        {name: leaf.to(device) for name, leaf in leaves.items()},
        grid.rects_around(cells, visible, sizes.window).to(device),
        (cells + wobble).to(device),
        upstream,
    )


def _cells(sizes: Sizes, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the windows' middle cells (B, Q, S, 2) and whether they are seen (B, Q, S)."""
    shape = (sizes.batch, sizes.queries, sizes.grid.num_segments)
    limits = torch.tensor([[s.rows, s.cols] for s in sizes.grid.segments])
    if sizes.placement == "around":
        return _around(limits, torch.rand(*shape[:2], 3, generator=rng))
    if sizes.placement == "borders":
        corner = torch.randint(0, 2, (*shape, 2), generator=rng)
        return corner * (limits - 1), torch.ones(shape, dtype=torch.bool)
    if sizes.placement == "one_cell":
        return (limits // 2).expand(*shape, 2), torch.ones(shape, dtype=torch.bool)
    cells = (torch.rand(*shape, 2, generator=rng) * limits).long()
    seen = torch.rand(shape, generator=rng) > 0.4  # four in ten have no window in a segment
    return cells, seen if sizes.placement == "spread" else torch.zeros(shape, dtype=torch.bool)


def _around(limits: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Lay queries out evenly over the BEV map, and see each in the cameras that look its way.

    Args:
        limits: (S, 2) rows and columns of the segments: the BEV map, then cameras in a ring.
        draws: (B, Q, 3) in [0, 1): row and column on the BEV map, height in the image.
    """
    cells = torch.zeros(*draws.shape[:2], len(limits), 2, dtype=torch.long)
    seen = torch.ones(cells.shape[:3], dtype=torch.bool)
    cells[:, :, 0] = (draws[..., :2] * limits[0]).long()
    bearing = torch.atan2(draws[..., 0] - 0.5, draws[..., 1] - 0.5)
    count = max(len(limits) - 1, 1)
    width = math.radians(70)  # field of view of the cameras of nuScenes, six of them 60 degrees apart
    for i in range(1, len(limits)):
        off = torch.remainder(bearing - (i - 1) * 2 * math.pi / count + math.pi, 2 * math.pi) - math.pi
        across = 0.5 + torch.tan(off.clamp(-1.5, 1.5)) / (
            2 * math.tan(width / 2)
        )  # 1.5 rad: short of the pole
        seen[:, :, i] = off.abs() < width / 2
        cells[:, :, i, 0] = ((0.3 + 0.5 * draws[..., 2]) * limits[i, 0]).long()  # the middle of the image
        cells[:, :, i, 1] = (across.clamp(0, 0.999) * limits[i, 1]).long()
    return cells, seen


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
    """Return the most an implementation gives for a case: ``all``, ``inputs``, ``none``; None: nothing."""
    for name, qkv, bias in (("all", True, True), ("inputs", True, False), ("none", False, False)):
        if not objections(impl, case.request(qkv, bias)):
            return name
    return None


def check_case(case: Case, impl: str, grads: str = "all") -> None:
    """Hold an implementation against the fp64 reference on one case, output and gradients."""
    upstream = None if grads == "none" else case.upstream
    oracle = make_oracle(case.leaves, case.bias, upstream)
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
    before = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    torch.set_deterministic_debug_mode(
        "warn"
    )  # use_deterministic_algorithms would import the compiler: ten seconds
    settings.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            # Determinism is not what is tested here; ops that lack it may run.
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
            yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        settings.fill_uninitialized_memory = before[1]
