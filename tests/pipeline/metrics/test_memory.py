"""Peak memory counts what graphs hold."""

import multiprocessing
from multiprocessing.connection import Connection

import pytest
import torch

from pipeline.metrics.memory import PeakMemory, peak_memory

CPU = torch.device("cpu")


def test_what_graphs_hold_is_added() -> None:
    memory = PeakMemory(CPU)
    memory.settle()
    alone, together = memory.measure("train"), memory.measure("train", held_bytes=2**34)
    assert together.metric == "train_peak_resident_gib"
    assert together.value == pytest.approx(alone.value + 16, abs=0.5)  # the process may grow in between


def grow(pipe: Connection) -> None:
    """Send the peak memory of this process before and after it held a quarter of a GiB more."""
    before = peak_memory(CPU)
    held = bytearray(2**30 // 4)
    held[::4096] = b"\x01" * len(held[::4096])  # touch every page
    pipe.send((before, peak_memory(CPU)))


def test_peak_memory_grows_with_what_is_held() -> None:
    """In a process of its own: the peak is since the start of the process, whatever ran in it before."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=grow, args=(theirs,), daemon=True)
    process.start()
    before, after = ours.recv()
    process.join()
    assert (after.metric, after.unit) == ("peak_resident_gib", "GiB")
    assert after.value - before.value == pytest.approx(0.25, abs=0.05)
    assert after.value < 64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_early_peak_counts_once() -> None:
    memory = PeakMemory(torch.device("cuda"))
    # cuBLAS keeps 32 MiB for every stream that it has served, and what failed before may hold tensors.
    held = torch.cuda.memory_allocated() / 2**30
    early = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    del early
    memory.settle()
    assert memory.measure("train", held_bytes=2**29).value == pytest.approx(held + 1, abs=0.01)
    assert memory.measure("train", held_bytes=2**31).value == pytest.approx(held + 2, abs=0.01)
