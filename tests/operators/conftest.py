"""Devices for the operator tests. Without a GPU, Triton's kernels run in its interpreter."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported


@pytest.fixture
def device():
    """Give the GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pytest_configure(config):
    """Let Triton's interpreter say what NumPy says and a GPU does not, and autograd's threads find a GPU."""
    for harmless in (
        "ignore:Conversion of an array with ndim:DeprecationWarning",  # the interpreter's own code
        "ignore:divide by zero encountered in log2:RuntimeWarning",  # a row without keys: -inf
        "ignore:overflow encountered in (exp2|multiply|matmul):RuntimeWarning",  # rects repeats such a block
        "ignore:Attempting to run cuBLAS, but there was no current CUDA context:UserWarning",
        "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",  # by torch's compiler
        "ignore:invalid value encountered:RuntimeWarning",  # in lanes that a select throws away
    ):
        config.addinivalue_line("filterwarnings", harmless)
