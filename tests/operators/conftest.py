"""Devices for the operator tests. Without a GPU, Triton's kernels run in its interpreter."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported


def pytest_generate_tests(metafunc):
    """Run what asks for a ``device`` on the GPU if there is one, else on the CPU."""
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", ["cuda" if torch.cuda.is_available() else "cpu"])
