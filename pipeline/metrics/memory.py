"""The most that a stretch of work took, with what CUDA graphs keep for their replays."""

import gc
from dataclasses import replace

import torch

from pipeline.metrics.recorder import Measure
from pipeline.metrics.timing import peak_memory


class PeakMemory:
    """Watches a stretch of work; begins with all memory given back that nothing holds.

    Args:
        device: where it runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._early = 0.0
        forget(device)

    def settle(self) -> None:
        """Say that what is captured has been captured: from now on graphs hold it, allocated or not."""
        if self._device.type == "cuda":
            self._early = peak_memory(self._device).value
            torch.cuda.reset_peak_memory_stats(self._device)

    def measure(self, kind: str, held_bytes: int = 0) -> Measure:
        """Return ``<kind>_peak_gib``.

        Args:
            kind: ``train`` or ``detect``.
            held_bytes: what graphs hold and the allocator does not count.
        """
        found = peak_memory(self._device)
        most = max(self._early, found.value + held_bytes / 2**30)
        return replace(found, metric=f"{kind}_peak_gib", value=most)


def forget(device: torch.device) -> None:
    """Give all memory of what ran before back, and begin to look for a new peak."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
