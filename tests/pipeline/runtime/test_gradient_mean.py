"""Two processes average their gradients: what has none keeps none, and who disagrees is told."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from pipeline.runtime.gradient_mean import GradientMean
from tests.machine import unused_port


class Model(nn.Module):
    """Two heads over a batch norm; each rank starts from weights of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm, self.frozen = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.one, self.other = nn.Linear(3, 1), nn.Linear(3, 1)


def in_group(rank: int, work: Callable[[int], object], folder: Path, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(work(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


def both(work: Callable[[int], object], folder: Path) -> list[object]:
    mp.start_processes(in_group, (work, folder, unused_port()), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def averaged(rank: int) -> dict[str, object]:
    model = Model(rank)
    parameters = [*model.one.parameters(), *model.other.parameters()]
    mean = GradientMean(model, parameters, [model.frozen])
    begun = [p.detach().clone() for p in parameters]
    model.norm.running_mean += (rank + 1) / 10
    model.norm.running_var += rank / 3
    model.frozen.running_mean += rank + 1
    model.one(torch.full((2, 3), rank + 1.0)).sum().backward()
    mean.average()
    return {
        "begun": begun,
        "norm": (model.norm.running_mean, model.norm.running_var),
        "frozen": model.frozen.running_mean,
        "one": model.one.weight.grad,
        "other": model.other.weight.grad,
    }


def test_gradients_are_means_and_what_has_none_keeps_none(tmp_path: Path) -> None:
    first, second = both(averaged, tmp_path)
    for found in (first, second):
        assert torch.equal(found["one"], torch.full((1, 3), 3.0))  # of 2 and 4, two rows each
        assert found["other"] is None
        assert torch.equal(found["norm"][0], torch.zeros(3) + 1 / 10)  # rank 0's, to the last bit
        assert torch.equal(found["norm"][1], torch.ones(3))
    assert torch.equal(second["frozen"], torch.full((3,), 2.0))  # its own
    assert all(torch.equal(a, b) for a, b in zip(first["begun"], second["begun"], strict=True))


def disagreeing(rank: int) -> str:
    model = Model(0)
    mean = GradientMean(model, [*model.one.parameters(), *model.other.parameters()])
    head = model.one if rank == 0 else model.other
    head(torch.ones(2, 3)).sum().backward()
    try:
        mean.average()
    except RuntimeError as error:
        return str(error)
    return ""


def test_ranks_that_train_different_tensors_are_told(tmp_path: Path) -> None:
    first, second = both(disagreeing, tmp_path)
    assert "rank 0: trained tensor 2, (1, 3), has no gradient here" in str(first)
    assert "rank 1: trained tensor 0, (1, 3), has no gradient here" in str(second)


def test_a_gradient_keeps_its_layout() -> None:
    """A fused optimiser takes gradients only in the layout of their parameters."""
    if dist.is_initialized():
        pytest.skip("another test has left a group")
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        conv = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        mean = GradientMean(conv, list(conv.parameters()))
        conv(torch.randn(1, 4, 5, 5)).sum().backward()
        assert conv.weight.grad is not None
        before, stride = conv.weight.grad.clone(), conv.weight.grad.stride()
        mean.average()
        assert conv.weight.grad.stride() == stride
        assert torch.equal(conv.weight.grad, before)
    finally:
        dist.destroy_process_group()
