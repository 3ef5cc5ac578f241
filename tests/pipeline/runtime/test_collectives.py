"""Numbers that ranks exchange while they go on."""

from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.runtime.collectives import RankMean
from tests.pipeline.runtime.test_gradient_mean import both


def shared(rank: int) -> list[torch.Tensor]:
    early = RankMean(torch.tensor([1.0 + rank, 4.0 * rank]))
    between = torch.ones(1)
    dist.all_reduce(between)  # another collective begins before the first is read
    return [early.read(), early.read(), between]


def test_the_mean_is_there_whenever_it_is_read(tmp_path: Path) -> None:
    for first, again, between in both(shared, tmp_path):
        assert first.tolist() == again.tolist() == [1.5, 2.0]
        assert between.tolist() == [2.0]


def test_a_process_alone_gets_its_own_numbers() -> None:
    assert RankMean(torch.tensor([3.0])).read().tolist() == [3.0]
