"""Fixtures of the detector tests."""

import importlib.util
from pathlib import Path

import pytest
import torch

SPEC = importlib.util.spec_from_file_location("detector_parity", Path(__file__).with_name("parity.py"))


@pytest.fixture(scope="session")
def published():
    """The module that knows the published implementation's weights and configs."""
    module = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def parity(published):
    """Golden numbers of the published implementation; skips where they are absent."""
    return published.Parity()


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.manual_seed(0)
