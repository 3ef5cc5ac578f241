"""Seeds and switches that make a CPU compute the same bits every time."""

import random

import numpy as np
import torch


def seed_everything(*parts: int) -> None:
    """Seed Python, numpy and torch from a tuple of integers such as (seed, step, rank)."""
    words = np.random.SeedSequence(parts).generate_state(2, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[0]) % 2**32)  # numpy's global generator takes 32 bits
    torch.manual_seed(int(words[1]) % 2**63)  # torch takes a signed 64-bit number


def deterministic(device: torch.device, threads: int) -> None:
    """Make a CPU compute the same bits every time. A GPU stays at full speed and is not deterministic.

    Args:
        device: the device that the trial runs on.
        threads: torch threads on a CPU.
    """
    if device.type == "cpu":
        torch.set_num_threads(threads)  # how a sum is split over threads changes its last bits
        # use_deterministic_algorithms(True) would do the same, and load the compiler: a second of CPU.
        torch.set_deterministic_debug_mode("error")
        # Filling every new tensor with NaN helps to find bugs, but costs a pass over the tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    else:
        # Images and maps keep their sizes, so the search for the fastest kernels pays off.
        torch.backends.cudnn.benchmark = True
