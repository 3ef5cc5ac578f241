"""Numbers that the workers of a trial make common."""

from collections.abc import Mapping

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


def all_reduce_max(value: int, session: Session) -> int:
    """Return the largest of all ranks' values on every rank."""
    if session.world_size == 1:
        return value
    shared = torch.tensor(value, device=session.device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared.item())


def all_reduce_mean(found: Mapping[str, float], session: Session) -> dict[str, float]:
    """Average a step's numbers over the ranks; all of them have the same names."""
    if session.world_size == 1:
        return dict(found)
    values = torch.tensor(list(found.values()), dtype=torch.float64, device=session.device)
    dist.all_reduce(values)
    return dict(zip(found, (values / session.world_size).tolist(), strict=True))
