"""Which kernels take the time, and where the host waits for the GPU."""

import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

ROWS = 40
"""Kernels in the table; what follows takes well under a percent."""

SYNC_WARNING = "called a synchronizing CUDA operation"
"""How PyTorch's warning about a wait begins."""


def kernel_table(step: Callable[[], object], cuda: bool) -> str:
    """Profile one call of ``step``: the table of the slowest kernels (on a CPU, of operators)."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as seen:
        step()
        if cuda:
            torch.cuda.synchronize()
    by = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return str(seen.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=90))


def waits(step: Callable[[], object]) -> list[tuple[str, int]]:
    """Run ``step`` on a GPU and list where the host waited for it: (file:line, times), most frequent first.

    PyTorch does not see the waits of other libraries, such as spconv's.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    places = Counter(f"{w.filename}:{w.lineno}" for w in seen if SYNC_WARNING in str(w.message))
    return places.most_common()
