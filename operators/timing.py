"""How long a call takes and how much memory it needs beyond its inputs, on a GPU or a CPU."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

_MIB = 2**20
_WARMUPS = 3  # calls: compilation, cuBLAS plans, allocator
_FLUSH_BYTES = (
    256 * _MIB
)  # four times the L2 cache of the largest GPU at hand, so that every call starts cold


class Timing(NamedTuple):
    """Times of one call in milliseconds: median, 20th and 80th percentile, and how many were measured."""

    median_ms: float
    low_ms: float
    high_ms: float
    n: int


def time_call(call: Callable[[], object], device: torch.device, budget_ms: float = 200.0) -> Timing:
    """Measure a call again and again until the budget is spent.

    On a GPU by events around every call, with the L2 cache flushed before each.

    Args:
        call: what to measure.
        device: where it runs.
        budget_ms: time to spend on measuring, after the warm-up.
    """
    for _ in range(_WARMUPS):
        call()
    once = _on_gpu(call, 1)[0] if device.type == "cuda" else _on_cpu(call, 1)[0]
    n = int(min(100, max(5, budget_ms / max(once, 1e-3))))  # at least 5 for percentiles; 100 settle a median
    times = sorted(_on_gpu(call, n) if device.type == "cuda" else _on_cpu(call, n))
    return Timing(times[n // 2], times[n // 5], times[n - 1 - n // 5], n)


def peak_extra_mib(call: Callable[[], object], device: torch.device) -> float | None:
    """Return the most memory a call held beyond what was there before it, in MiB; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / _MIB


def _on_gpu(call: Callable[[], object], n: int) -> list[float]:
    """Time ``n`` calls by events, in ms."""
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    event: Any = torch.cuda.Event  # its constructor has no types
    pairs = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(n)]
    for start, stop in pairs:
        flush.zero_()
        start.record()
        call()
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) for start, stop in pairs]


def _on_cpu(call: Callable[[], object], n: int) -> list[float]:
    """Time ``n`` calls by the clock, in ms."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times
