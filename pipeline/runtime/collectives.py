"""Numbers that the workers of a trial exchange."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

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
