"""Seeds and switches that make a CPU compute the same bits every time."""

import random

import numpy as np
import torch

MANY_STEPS = 500
"""Steps of a training on a GPU from which on a search for the fastest convolutions pays off."""


def seed_everything(*parts: int) -> None:
    """Seed Python, numpy and torch from a tuple of integers such as (seed, step, rank)."""
    words = np.random.SeedSequence(parts).generate_state(2, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[0]) % 2**32)  # numpy's global generator takes 32 bits
    torch.manual_seed(int(words[1]) % 2**63)  # torch takes a signed 64-bit number


def deterministic(device: torch.device, threads: int, steps: int | None = None) -> None:
    """Make a CPU compute the same bits every time. A GPU stays at full speed and is not deterministic.

    Args:
        device: the device that the trial runs on.
        threads: torch threads on a CPU.
        steps: of the training; None: many.
    """
    if device.type == "cpu":
        torch.set_num_threads(threads)  # how a sum is split over threads changes its last bits
        # use_deterministic_algorithms(True) would do the same, and load the compiler: a second of CPU.
        torch.set_deterministic_debug_mode("error")
        # Filling every new tensor with NaN helps to find bugs, but costs a pass over the tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    else:
        # Images and maps keep their sizes, so the search for the fastest kernels pays off, but not at once:
        # it tries ten kernels, and loads each, for every convolution and every size.
        torch.backends.cudnn.benchmark = steps is None or steps >= MANY_STEPS
