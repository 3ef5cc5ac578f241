"""How fast a trial trains and detects.

Times are wall-clock, on CUDA between synchronisations; the first ones are thrown away, because
allocators, autotuners and caches warm up in them. Nothing here may run inside a report.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.metrics.recorder import Measure

WARMUP_STEPS = 5
"""Training steps left out: the allocator and lazy initialisations settle within two; the rest is margin."""

WARMUP_CALLS = 3
"""Inference calls left out, for the same reason."""

CALLS = 30
"""Inference calls timed: enough for a 95th percentile that is not the maximum."""


class StepClock:
    """Times the steps of a training run: with and without the wait for data."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun = 0.0
        self._fed = 0.0
        self._waits: list[float] = []
        self._steps: list[float] = []

    def begin(self) -> None:
        """Mark the start of an iteration, before its data are asked for."""
        self._begun = time.perf_counter()

    def fed(self) -> None:
        """Mark the moment the batch is there."""
        self._fed = time.perf_counter()

    def end(self) -> None:
        """Mark the end of the optimiser step."""
        _synchronize(self._device)
        now = time.perf_counter()
        self._waits.append(self._fed - self._begun)
        self._steps.append(now - self._fed)

    def seconds_left(self, steps: int) -> float:
        """Estimate the time ``steps`` more steps take; NaN before the first."""
        if not self._steps:
            return float("nan")
        recent = [w + s for w, s in zip(self._waits[-50:], self._steps[-50:], strict=True)]  # drifts slowly
        return steps * float(np.median(recent))

    def measures(self, samples_per_step: int) -> list[Measure]:
        """Return ``step_ms`` (without the wait), ``data_wait_ms`` and ``train_samples_per_s`` (with it).

        Args:
            samples_per_step: samples of all workers together.
        """
        skip = WARMUP_STEPS if len(self._steps) > 2 * WARMUP_STEPS else len(self._steps) // 2
        steps, waits = np.array(self._steps[skip:]), np.array(self._waits[skip:])
        if not len(steps):
            return []
        rates = samples_per_step / (steps + waits)
        return [
            _median("step_ms", "ms", steps * 1e3),
            _median("data_wait_ms", "ms", waits * 1e3),
            _median("train_samples_per_s", "samples/s", rates),
        ]


def latency(call: Callable[[int], object], device: torch.device, calls: int) -> list[Measure]:
    """Time inference at batch 1.

    Args:
        call: runs the model on frame number i; data are at hand already.
        device: where it runs.
        calls: calls timed, after ``WARMUP_CALLS`` that are not.

    Returns:
        ``inference_latency_p50_ms`` and ``inference_latency_p95_ms``.
    """
    times = []
    for i in range(WARMUP_CALLS + calls):
        _synchronize(device)
        begun = time.perf_counter()
        call(i)
        _synchronize(device)
        times.append((time.perf_counter() - begun) * 1e3)
    timed = np.array(times[WARMUP_CALLS:])
    p95 = Measure("inference_latency_p95_ms", "ms", float(np.percentile(timed, 95)), n=len(timed))
    return [_median("inference_latency_p50_ms", "ms", timed), p95]


def device_name(device: torch.device) -> str:
    """Return ``cpu`` or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _median(metric: str, unit: str, values: NDArray[np.float64]) -> Measure:
    low, middle, high = np.percentile(values, (20, 50, 80))
    half_iqr60 = float(high - low) / 2 if len(values) > 1 else float("nan")
    return Measure(metric, unit, float(middle), half_iqr60=half_iqr60, n=len(values))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
