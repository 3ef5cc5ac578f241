"""What is switched on a CPU and on a GPU before a trial."""

import pytest
import torch

from pipeline.runtime.determinism import MANY_STEPS, deterministic


@pytest.mark.parametrize(("steps", "searches"), [(40, False), (MANY_STEPS, True), (None, True)])
def test_convolutions_are_searched_for_where_it_pays_off(monkeypatch, steps, searches):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not searches)
    deterministic(torch.device("cuda"), 1, steps)
    assert torch.backends.cudnn.benchmark is searches


def test_a_cpu_refuses_what_is_not_deterministic():
    before, threads = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    try:
        torch.set_deterministic_debug_mode("default")
        deterministic(torch.device("cpu"), threads)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.set_deterministic_debug_mode(before)
