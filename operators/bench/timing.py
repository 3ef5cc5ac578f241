"""How long a call takes and how much memory it needs beyond its inputs, on a GPU or a CPU.

On a GPU the time is the GPU's alone. A call of a few tenths of a millisecond takes the host longer to launch
than the GPU to run, so before every call the GPU is given something to wait on while the host runs ahead.
What the host needs is measured beside it: a model pays that where its GPU waits for the host.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

_MIB = 2**20
_CYCLES_PER_MS = 2_000_000  # of an H200 at its 1.98 GHz; a slower chip waits longer, which does no harm
_WARMUPS = 3  # calls: compilation, cuBLAS plans, allocator
_FLUSH_BYTES = 256 * _MIB  # four times the largest L2 cache at hand, so that every call starts cold


class Timing(NamedTuple):
    """Times of one call in ms: median, 20th and 80th percentile, how many, and the median of the host."""

    median_ms: float
    low_ms: float
    high_ms: float
    n: int
    host_ms: float


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
    gpu = device.type == "cuda"
    once = sum(_on_gpu(call, 1, 0.0)[0]) if gpu else _on_cpu(call, 1)[0]
    n = int(min(100, max(5, budget_ms / max(once, 1e-3))))  # at least 5 for percentiles; 100 settle a median
    # Twice what the first call took, host and GPU together, is longer than the host needs for any.
    pairs = _on_gpu(call, n, 2 * once) if gpu else [(spent, spent) for spent in _on_cpu(call, n)]
    times, host = sorted(pair[0] for pair in pairs), sorted(pair[1] for pair in pairs)
    return Timing(times[n // 2], times[n // 5], times[n - 1 - n // 5], n, host[n // 2])


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


def _on_gpu(call: Callable[[], object], n: int, ahead_ms: float) -> list[tuple[float, float]]:
    """Time ``n`` calls: the GPU's time by events and the host's by the clock, in ms.

    The GPU idles for ``ahead_ms`` before each call, so that the host has launched it all when it begins.
    """
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    event: Any = torch.cuda.Event  # neither has types
    wait: Any = torch.cuda._sleep
    found = []
    for _ in range(n):
        start, stop = event(enable_timing=True), event(enable_timing=True)
        flush.zero_()
        wait(int(ahead_ms * _CYCLES_PER_MS))
        start.record()
        began = time.perf_counter()
        call()
        host = (time.perf_counter() - began) * 1e3
        stop.record()
        torch.cuda.synchronize()
        found.append((start.elapsed_time(stop), host))
    return found


def _on_cpu(call: Callable[[], object], n: int) -> list[float]:
    """Time ``n`` calls by the clock, in ms."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times
