"""Peak memory counts what graphs hold."""

import pytest
import torch

from pipeline.metrics.memory import PeakMemory

CPU = torch.device("cpu")


def test_what_graphs_hold_is_added() -> None:
    memory = PeakMemory(CPU)
    memory.settle()
    alone, together = memory.measure("train"), memory.measure("train", held_bytes=2**34)
    assert together.metric == "train_peak_resident_gib"
    assert together.value == pytest.approx(alone.value + 16, abs=0.5)  # the process may grow in between


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_early_peak_counts_once() -> None:
    memory = PeakMemory(torch.device("cuda"))
    early = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    del early
    memory.settle()
    assert memory.measure("train", held_bytes=2**29).value == pytest.approx(1, abs=0.1)
    assert memory.measure("train", held_bytes=2**31).value == pytest.approx(2, abs=0.1)
