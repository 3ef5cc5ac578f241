"""Measure how fast a trial trains and detects.

Times are wall-clock times. On CUDA they are taken between synchronisations, except of the steps of a trial,
which are launched one after another (``Moment``). The first ones are left out, because allocators, autotuners
and caches warm up in them. Nothing here may run inside a call of ``report_checkpoint``.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.metrics.recorder import Measure

WARMUP_STEPS = 5
"""Training steps left out. The allocator and lazy initialisation settle within two; the rest is margin."""

WARMUP_CALLS = 3
"""Inference calls left out, for the same reason."""

CALLS = 21
"""Inference calls timed: the fewest of which the 95th percentile is the second slowest, not the slowest."""


class Moment:
    """A moment: on a CPU now; on a GPU when the current stream has done what was launched before.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._time = time.perf_counter()
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def seconds_since(self, earlier: "Moment") -> float:
        """Return the seconds from another moment to this one; on a GPU the host waits until it is there."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        self._event.synchronize()
        return earlier._event.elapsed_time(self._event) / 1e3


class StepTimes:
    """The times of the training steps of one trial, which may train in a cohort."""

    def __init__(self) -> None:
        self._waits: list[float] = []
        self._trunks: list[float] = []
        self._owns: list[float] = []
        self._told = 0

    def add(self, wait_s: float, trunk_s: float, own_s: float) -> None:
        """Add a step.

        Args:
            wait_s: seconds until the loader gave the batch.
            trunk_s: seconds for what arms of a cohort share: collation, upload, preprocessing, trunk.
            own_s: seconds for what each arm does by itself.
        """
        self._waits.append(wait_s)
        self._trunks.append(trunk_s)
        self._owns.append(own_s)

    def recent_rate(self, samples_per_step: int) -> list[Measure]:
        """Return ``samples_per_s`` of the steps since the last call, with the wait for data; or nothing.

        It is for the eye while a trial runs, and what the trial would have alone. Verdicts take ``measures``,
        which leave out the first steps.

        Args:
            samples_per_step: samples of all workers together.
        """
        first, self._told = self._told, len(self._waits)
        took = sum(sum(times[first:]) for times in (self._waits, self._trunks, self._owns))
        samples = (self._told - first) * samples_per_step
        return [Measure("samples_per_s", "samples/s", samples / took)] if took > 0 else []

    def measures(self, samples_per_step: int) -> list[Measure]:
        """Return medians, what a step costs an arm that trains alone, and its two parts.

        ``step_ms``, ``data_wait_ms`` and ``train_samples_per_s`` are as in ``StepClock.measures``; a step is
        trunk and own part. ``step_trunk_ms`` and ``step_own_ms`` are the parts: n arms of a cohort take
        trunk + n x own.

        Args:
            samples_per_step: samples of all workers together.

        Returns:
            Five measures, or none without a step.
        """
        trunks, owns = np.array(_settled(self._trunks)), np.array(_settled(self._owns))
        found = _step_measures(trunks + owns, np.array(_settled(self._waits)), samples_per_step)
        parts = {"step_trunk_ms": trunks, "step_own_ms": owns} if found else {}
        return [*found, *(_median(name, "ms", part * 1e3) for name, part in parts.items())]


class StepClock:
    """Times steps that end before the next one begins, with and without the wait for data.

    Args:
        device: where the steps run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun = 0.0
        self._fed = 0.0
        self._waits: list[float] = []
        self._steps: list[float] = []

    def begin(self) -> None:
        """Mark the start of an iteration, before the loader is asked for a batch."""
        self._begun = time.perf_counter()

    def fed(self) -> None:
        """Mark the moment when the batch has been loaded."""
        self._fed = time.perf_counter()

    def end(self) -> None:
        """Mark the end of the optimiser step; the host waits for the device."""
        _synchronize(self._device)
        now = time.perf_counter()
        self._waits.append(self._fed - self._begun)
        self._steps.append(now - self._fed)

    def measures(self, samples_per_step: int) -> list[Measure]:
        """Return the medians ``step_ms``, ``data_wait_ms`` and ``train_samples_per_s``.

        ``step_ms`` is without the wait for data. ``train_samples_per_s`` counts the wait.

        Args:
            samples_per_step: samples of all workers together.

        Returns:
            Three measures, or none before the first step has ended.
        """
        steps, waits = np.array(_settled(self._steps)), np.array(_settled(self._waits))
        return _step_measures(steps, waits, samples_per_step)


def _settled(times: list[float]) -> list[float]:
    """Leave out the first steps of a training."""
    return times[WARMUP_STEPS if len(times) > 2 * WARMUP_STEPS else len(times) // 2 :]


def _step_measures(
    steps: NDArray[np.float64], waits: NDArray[np.float64], samples_per_step: int
) -> list[Measure]:
    """Return the medians of steps and waits, in s, and of the throughput; nothing without a step."""
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
        call: runs the model on frame number i, whose data are already loaded.
        device: the device that the model runs on.
        calls: number of timed calls. ``WARMUP_CALLS`` more are made before them.

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


@dataclass(frozen=True)
class Timed:
    """One call by two clocks.

    Attributes:
        primary_ms: on a CPU the processor time of this process, on a GPU the time between two events of the
            device, around the call.
        second_ms: wall-clock time until the call has returned, and on a GPU until the device is done.
    """

    primary_ms: float
    second_ms: float


def timed_call(call: Callable[[], object], device: torch.device) -> Timed:
    """Time one call. Nothing is left out, so call it a few times before.

    Processor time leaves out what other programs take of a CPU, but counts all threads of this process: on a
    CPU torch must have one thread. Python's garbage collector waits until the call has ended.

    Args:
        call: what to time.
        device: that it computes on.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return _timed_on_gpu(call, device) if device.type == "cuda" else _timed_on_cpu(call)
    finally:
        if collects:
            gc.enable()


def _timed_on_cpu(call: Callable[[], object]) -> Timed:
    begun, wall = time.process_time(), time.perf_counter()
    call()
    took = time.process_time() - begun
    return Timed(took * 1e3, (time.perf_counter() - wall) * 1e3)


def _timed_on_gpu(call: Callable[[], object], device: torch.device) -> Timed:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    wall = time.perf_counter()
    first.record()
    call()
    last.record()
    torch.cuda.synchronize(device)
    second = (time.perf_counter() - wall) * 1e3
    return Timed(first.elapsed_time(last), second)


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
