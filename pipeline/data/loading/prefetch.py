"""How much loaded data may lie ready, counted in bytes over all loader processes of a rank.

A batch that is made waits for budget before it is handed over. The batch that training wants next always
goes, so nobody waits for ever, whatever the sizes. Counters have one writer each and need no lock, which a
process that is killed could keep.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import multiprocessing

PREFETCH_BYTES = 512 * 2**20
"""PrefetchBudget for batches that are ready: ten of two full-size samples with ten sweeps (47 MB)."""

POLL_INTERVAL_S = 0.002
"""How often a process that waits looks again: a hundredth of what a full-size sample costs."""


class PrefetchBudget:
    """Counts the bytes of batches that are made and not yet used.

    Args:
        workers: loader processes.
        limit: bytes; exceeded by at most one batch a process.
    """

    def __init__(self, workers: int, limit: int = PREFETCH_BYTES) -> None:
        self.limit = limit
        self._made = multiprocessing.get_context().Array("q", max(1, workers), lock=False)
        self._used = multiprocessing.get_context().Array("q", 2, lock=False)  # bytes, batches

    def wait_and_add(self, worker: int, number: int, size: int) -> None:
        """Wait until batch ``number`` of ``size`` bytes may be handed over by a loader process."""
        while sum(self._made) - self._used[0] + size > self.limit and number > self._used[1]:
            time.sleep(POLL_INTERVAL_S)
        self._made[worker] += size

    def remove(self, size: int) -> None:
        """Count a batch as used: in training's hands, the next one wanted."""
        self._used[0] += size
        self._used[1] += 1

    @property
    def ready_bytes(self) -> int:
        """Bytes that lie ready."""
        return int(sum(self._made) - self._used[0])


def size_of(batch: Sequence[Mapping[str, Any]]) -> int:
    """Return the bytes of the tensors and arrays in a batch."""
    kinds = (torch.Tensor, np.ndarray)
    return sum(value.nbytes for made in batch for value in made.values() if isinstance(value, kinds))
