"""Time of a call, and its memory beyond the inputs, on a GPU or a CPU.

On a GPU the time is that of the GPU only. To launch a call of a few tenths of a millisecond takes the host
longer than the GPU takes to run it. So the GPU waits before every call while the host runs ahead. The host's
time is measured too, because a model pays it where its GPU waits for the host.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

_MIB = 2**20
_CYCLES_PER_MS = 2_000_000  # of an H200 at 1.98 GHz; a slower chip waits longer, which does no harm
_WARMUPS = {"cuda": 3, "cpu": 1}  # calls, for compilation, cuBLAS plans and the allocator
_FEWEST = {"cuda": 5, "cpu": 3}  # calls that are timed; on a CPU one may take seconds
_FLUSH_BYTES = 256 * _MIB  # four times the L2 cache of an H200, so that every call starts with a cold cache


class Timing(NamedTuple):
    """Times of one call in ms: median, 20th and 80th percentile, number of calls, and the host's median."""

    median_ms: float
    low_ms: float
    high_ms: float
    n: int
    host_ms: float


def time_call(call: Callable[[], object], device: torch.device, budget_ms: float = 200.0) -> Timing:
    """Repeat a call until the budget is spent, and return its times.

    On a GPU events around every call measure the time, and the L2 cache is flushed before each call.

    Args:
        call: what to measure.
        device: where it runs.
        budget_ms: time for the repetitions after the warm-up. There are at least 5, on a CPU 3, and at
            most 100.
    """
    for _ in range(_WARMUPS[device.type]):
        call()
    gpu = device.type == "cuda"
    once = sum(_on_gpu(call, 1, 0.0)[0]) if gpu else _on_cpu(call, 1)[0]
    n = int(min(100, max(_FEWEST[device.type], budget_ms / max(once, 1e-3))))  # 100 settle a median
    # Twice the time of one call, host and GPU together, is longer than the host needs to launch one.
    pairs = _on_gpu(call, n, 2 * once) if gpu else [(spent, spent) for spent in _on_cpu(call, n)]
    times, host = sorted(pair[0] for pair in pairs), sorted(pair[1] for pair in pairs)
    return Timing(times[n // 2], times[n // 5], times[n - 1 - n // 5], n, host[n // 2])


def peak_extra_mib(call: Callable[[], object], device: torch.device) -> float | None:
    """Return the peak memory of a call beyond what was allocated before it, in MiB; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / _MIB


def _on_gpu(call: Callable[[], object], n: int, ahead_ms: float) -> list[tuple[float, float]]:
    """Return the times of ``n`` calls in ms: (GPU, by events; host, by the clock).

    The GPU idles for ``ahead_ms`` before each call, so that the host has launched all of it before it starts.
    """
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    event: Any = torch.cuda.Event  # PyTorch has no types for these two
    wait: Any = torch.cuda._sleep
    times = []
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
        times.append((start.elapsed_time(stop), host))
    return times


def _on_cpu(call: Callable[[], object], n: int) -> list[float]:
    """Return the times of ``n`` calls by the clock, in ms."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times
