"""Limit on the bytes of batches that are ready, over all loader processes of a rank.

A finished batch waits until it fits in the limit. The batch that training needs next never waits, so there is
no deadlock for any size. Each counter has one writer, so no lock is needed, which a killed process could
hold.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import multiprocessing

PREFETCH_BYTES = 512 * 2**20
"""Limit for batches that are ready: ten batches of two full-size samples with ten sweeps (47 MB)."""

POLL_INTERVAL_S = 0.002
"""Time between two checks of a waiting process: a hundredth of the time of a full-size sample."""


class PrefetchBudget:
    """Counts the bytes of batches that are made and not yet used.

    Args:
        workers: number of loader processes.
        limit: limit in bytes; it is exceeded by at most one batch per process.
    """

    def __init__(self, workers: int, limit: int = PREFETCH_BYTES) -> None:
        self.limit = limit
        self._made = multiprocessing.get_context().Array("q", max(1, workers), lock=False)
        self._used = multiprocessing.get_context().Array("q", 2, lock=False)  # bytes, batches

    def wait_and_add(self, worker: int, number: int, size: int) -> None:
        """Wait until batch ``number`` of a loader process fits in the limit, then add its size in bytes."""
        trainer = multiprocessing.parent_process()
        while sum(self._made) - self._used[0] + size > self.limit and number > self._used[1]:
            if trainer is not None and not trainer.is_alive():  # killed: nobody will use a batch any more
                os._exit(1)
            time.sleep(POLL_INTERVAL_S)
        self._made[worker] += size

    def remove(self, size: int) -> None:
        """Count a batch of ``size`` bytes as used by the training."""
        self._used[0] += size
        self._used[1] += 1

    @property
    def ready_bytes(self) -> int:
        """Bytes of the batches that are ready."""
        return int(sum(self._made) - self._used[0])


def size_of(batch: Sequence[Mapping[str, Any]]) -> int:
    """Return the bytes of the tensors and arrays in a batch."""
    kinds = (torch.Tensor, np.ndarray)
    return sum(value.nbytes for made in batch for value in made.values() if isinstance(value, kinds))
