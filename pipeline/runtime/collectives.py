"""Numbers that the workers of a trial exchange."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.runtime.session import Session


def broadcast(value: float, session: Session) -> float:
    """Return rank 0's value on every rank."""
    if session.world_size == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=session.device)
    dist.broadcast(shared, src=0)
    return float(shared.item())


def all_reduce_mean(values: Sequence[float], session: Session) -> list[float]:
    """Return the mean over the ranks of each value; every rank passes as many, in the same order."""
    if session.world_size == 1:
        return list(values)
    shared = torch.tensor(values, dtype=torch.float64, device=session.device)
    dist.all_reduce(shared)
    means: list[float] = (shared / session.world_size).tolist()
    return means


class RankMean:
    """The mean over the ranks of numbers that each of them knows early and needs late.

    The collective begins at once, and nobody waits for it before ``read``. In a single process the mean is
    the numbers.

    Args:
        numbers: of this rank, float, on the device of the process group; they are overwritten.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers
        self._work: dist.Work | None = None
        if dist.is_available() and dist.is_initialized():
            self._work = dist.all_reduce(numbers, async_op=True)

    def read(self) -> Tensor:
        """Return the mean, as often as it is asked for; on a GPU the current stream waits, not the host."""
        if self._work is not None:
            self._work.wait()
            self._numbers, self._work = self._numbers / dist.get_world_size(), None
        return self._numbers
