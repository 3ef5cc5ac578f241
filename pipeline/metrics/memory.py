"""Memory that a process holds, and the most that it held: on a GPU by PyTorch's allocator, else resident.

The two are different quantities, so they are different metrics. ``peak_allocated_gib`` counts tensors on
the GPU. ``peak_resident_gib`` counts the pages of the whole process, from its start.
"""

import gc
import resource
import sys
from dataclasses import replace

import torch

from pipeline.metrics.recorder import Measure
from pipeline.metrics.rows import PEAKS

ALLOCATED, RESIDENT = PEAKS


def peak_memory(device: torch.device) -> Measure:
    """Return the peak of this process in GiB, since its start or the last reset.

    Returns:
        ``peak_allocated_gib`` on CUDA; ``peak_resident_gib`` on a CPU, where nothing resets it.
    """
    if device.type == "cuda":
        return Measure(ALLOCATED, "GiB", torch.cuda.max_memory_allocated(device) / 2**30)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB, on macOS in bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Measure(RESIDENT, "GiB", peak / 2**30)


class PeakMemory:
    """Measures the peak of a stretch of work; first gives all memory back that nothing holds.

    Args:
        device: where it runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._early = 0.0
        forget(device)

    def settle(self) -> None:
        """Mark that all CUDA graphs are captured: from here on they hold memory that is not allocated."""
        if self._device.type == "cuda":
            self._early = peak_memory(self._device).value
            torch.cuda.reset_peak_memory_stats(self._device)

    def measure(self, kind: str, held_bytes: int = 0) -> Measure:
        """Return ``<kind>_peak_allocated_gib``, on a CPU ``<kind>_peak_resident_gib``.

        Args:
            kind: ``train`` or ``inference``.
            held_bytes: what graphs hold and the allocator does not count.
        """
        peak = peak_memory(self._device)
        most = max(self._early, peak.value + held_bytes / 2**30)
        return replace(peak, metric=f"{kind}_{peak.metric}", value=most)


def forget(device: torch.device) -> None:
    """Give all memory of what ran before back, and begin to look for a new peak."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
