"""Seeded cases of attention, and their outputs and gradients by name.

The conformance suite and the benchmark use them. ``Sizes`` can describe hard cases: windows that are cut at
borders, that lie around one cell or nowhere; a single query; a number of keys without small divisors. Memory
can be filled with NaN, so that an element that a kernel does not write shows.
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

from operators.api import attention, deterministic_only
from operators.bias import DenseBias, GlobalBias
from operators.forms import Bias
from operators.grid import TokenGrid
from operators.registry import objections
from operators.spec import KINDS, Request
from operators.testing.oracle import make_oracle, results
from operators.window_bias import FALL_OFFS, LocalMask, WindowBias

Placement = Literal["spread", "one_cell", "borders", "nowhere", "around"]
"""Where the windows of a case lie: ``spread``: anywhere, some invisible; ``one_cell``: all around one cell;
``borders``: at the corners of the maps; ``nowhere``: there are none; ``around``: as a decoder's queries lie
around a car, each in one or two cameras."""

SATURATION = 5.0  # logits: the largest absolute bias of AQR; a larger one hardly changes a softmax


@dataclass(frozen=True)
class Sizes:
    """Sizes of a case, and the placement of its windows.

    Attributes:
        batch: B. heads: H. queries: Q. head_size: D.
        bev: rows and columns of the BEV map.
        cameras: number of cameras, rows and columns of each.
        window: window sizes in cells: LiDAR, camera.
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
        """Return the id of the case in tests."""
        extra = "" if self.placement == "spread" else f"-{self.placement}"
        heads = "-perhead" if self.bias_per_head else ""
        sizes = f"B{self.batch}-H{self.heads}-Q{self.queries}-K{self.grid.num_keys}-D{self.head_size}"
        return f"{sizes}-w{self.window[0]}x{self.window[1]}{extra}{heads}"


@dataclass(frozen=True, eq=False)
class Case:
    """One random call of attention.

    Attributes:
        kind: the bias kind.
        sizes: the sizes.
        leaves: ``q``, ``k``, ``v`` in the dtype under test; ``weight`` in float32 if the kind has one.
        windows: (B, Q, S, 4) int32.
        centers: (B, Q, S, 2) float32, for a fall-off.
        upstream: (B, H, Q, D), the gradient of the result.
    """

    kind: str
    sizes: Sizes
    leaves: dict[str, Tensor]
    windows: Tensor
    centers: Tensor
    upstream: Tensor

    def bias(self, weight: Tensor | None) -> Bias | None:
        """Return the bias with the given weight, in the weight's dtype."""
        grid = self.sizes.grid
        if self.kind == "local":
            return LocalMask(grid, self.windows)
        if weight is None:
            return None
        if self.kind == "dense":
            return DenseBias(weight)
        if self.kind == "global":
            return GlobalBias(grid, weight)
        if self.kind == "window":
            return WindowBias(grid, self.windows, weight)
        if self.kind in FALL_OFFS:
            # sigma is 1.3 cells and not 1, so that a missing square or factor 1/2 shows
            centers = self.centers.to(weight.dtype)
            return FALL_OFFS[self.kind](grid, self.windows, weight, centers, 1.3, SATURATION * 0.8)
        raise ValueError(f"Case.bias makes no bias of the kind {self.kind!r}; add it there")

    def request(self, qkv_grad: bool = True, bias_grad: bool = True, rank: int | None = None) -> Request:
        """Return the ``Request`` of the call."""
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
            deterministic=deterministic_only(),
        )


def make_case(
    kind: str, sizes: Sizes, dtype: torch.dtype, device: str | torch.device = "cpu", seed: int = 0
) -> Case:
    """Draw a case.

    Windows and weights are the same on every device. q, k, v and the upstream gradient are drawn on the
    device where they are used, because a GPU takes microseconds for what takes a CPU seconds. Weights exceed
    the saturation of AQR (5 logits), and a tenth of them are 0.
    """
    rng = torch.Generator().manual_seed(seed)
    on_gpu = torch.device(device).type == "cuda"
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
    if kind not in KINDS:
        raise ValueError(f"make_case knows no weight of the kind {kind!r}; expected one of {sorted(KINDS)}")
    widths = {"score": grid.num_keys, "modality": 2, "segment": segments}
    if last := widths.get(KINDS[kind].weights):
        shape = (batch, heads if sizes.bias_per_head else 1, queries, last)
        weight = (torch.rand(shape, generator=rng) * 2 - 1) * SATURATION * 1.2
        leaves["weight"] = weight * (torch.rand(shape, generator=rng) > 0.1)  # a tenth of them 0
    upstream = torch.randn(content, generator=there, device=device).to(dtype)
    wobble = torch.rand(batch, queries, segments, 2, generator=rng) - 0.5
    return Case(
        kind,
        sizes,
        {name: leaf.to(device) for name, leaf in leaves.items()},
        grid.windows_around(cells, visible, sizes.window).to(device),
        (cells + wobble).to(device),
        upstream,
    )


def _cells(sizes: Sizes, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the middle cells of the windows (B, Q, S, 2), and whether each is visible (B, Q, S)."""
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
    visible = torch.rand(shape, generator=rng) > 0.4  # 40 % have no window in a segment
    return cells, visible if sizes.placement == "spread" else torch.zeros(shape, dtype=torch.bool)


def _around(limits: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Spread queries evenly over the BEV map; a query is visible in the cameras whose field of view holds it.

    Args:
        limits: (S, 2) rows and columns of the segments: the BEV map, then cameras in a ring.
        draws: (B, Q, 3) in [0, 1): row and column on the BEV map, height in the image.

    Returns:
        Cells (B, Q, S, 2) and visible (B, Q, S), as ``_cells``.
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
        case: the case.
        impl: the implementation.
        grads: ``all``, ``inputs`` (only q, k, v), ``bias`` (only its weight) or ``none``.
        rank: for ``lowrank``.

    Returns:
        ``out`` and the gradients by name, as ``results`` returns them.
    """
    leaves = {}
    for name, leaf in case.leaves.items():
        wanted = grads in ("all", "bias" if name == "weight" else "inputs")
        leaves[name] = leaf.detach().clone().requires_grad_(wanted)
    bias = case.bias(leaves.get("weight"))
    out = attention(leaves["q"], leaves["k"], leaves["v"], bias, impl=impl, rank=rank)
    return results(out, leaves, None if grads == "none" else case.upstream)


def gradients_served(impl: str, case: Case) -> str | None:
    """Return the gradients that an implementation gives for a case: ``all``, ``inputs`` or ``none``.

    None if it cannot serve the case at all.
    """
    for name, qkv, bias in (("all", True, True), ("inputs", True, False), ("none", False, False)):
        if not objections(impl, case.request(qkv, bias)):
            return name
    return None


def check_case(case: Case, impl: str, grads: str = "all") -> None:
    """Compare output and gradients of an implementation with the float64 reference on one case.

    Raises:
        AssertionError: an error exceeds its budget.
    """
    upstream = None if grads == "none" else case.upstream
    oracle = make_oracle(case.leaves, case.bias, upstream)
    with poisoned_memory(case.leaves["q"].device):
        actual = outputs_and_grads(case, impl, grads=grads)
    oracle.check(actual)


@contextmanager
def poisoned_memory(device: torch.device) -> Iterator[None]:
    """Fill new memory with NaN, so that an element that a kernel does not write shows.

    On the CPU PyTorch has a switch for it, which needs deterministic mode. On a GPU that mode would rule out
    kernels. There NaN is written into free blocks of the caching allocator, which it then hands out.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        blocks = [
            torch.full((1 << size,), torch.nan, device=device) for size in range(8, 27)
        ]  # 1 kB .. 256 MB
        del blocks
        yield
        return
    settings: Any = deterministic  # the switch is a property of the module, which type checkers do not see
    before = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    torch.set_deterministic_debug_mode(
        "warn"
    )  # use_deterministic_algorithms would import the compiler: ten seconds
    settings.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            # Determinism is not tested here: nondeterministic ops may run.
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
            yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        settings.fill_uninitialized_memory = before[1]
