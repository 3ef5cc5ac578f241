"""List which kernels take the time of a step, and where the host waits for the GPU."""

import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

ROWS = 40
"""Kernels in the table. Each kernel after these takes well under a percent of the time."""

SYNC_WARNING = "called a synchronizing CUDA operation"
"""Text in PyTorch's warning about a wait."""


def kernel_table(step: Callable[[], object], cuda: bool) -> str:
    """Profile one call of ``step`` and return a table of the slowest kernels, or of operators on a CPU."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        step()
        if cuda:
            torch.cuda.synchronize()
    by = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=90))


def waits(step: Callable[[], object]) -> list[tuple[str, int]]:
    """Run ``step`` on a GPU and list where the host waited for it.

    PyTorch does not notice waits inside other libraries, such as spconv.

    Returns:
        (file:line, number of waits), most frequent first.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    places = Counter(f"{w.filename}:{w.lineno}" for w in caught if SYNC_WARNING in str(w.message))
    return places.most_common()
