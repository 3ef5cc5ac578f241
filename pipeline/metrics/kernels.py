"""Measure which kernels ran at every attention site, by profiling one training step.

``SiteAttention`` opens a profiler range ``site:<name>``. The operators inside it, and the backward
nodes that autograd made for them, belong to the site. On a GPU, the rows name their CUDA kernels. On a
CPU, the rows name the ATen operators.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from torch.autograd.profiler import profile

from pipeline.metrics.recorder import Measure

PREFIX = "site:"
BACKWARD = "autograd::engine::evaluate_function"
"""Prefix of the events in which autograd runs one backward node."""

FORWARD = 0
"""The scope of operators, ``RecordScope::FUNCTION`` of ATen. Backward nodes have other scopes."""

LISTED = 8
"""Kernels listed per site, slowest first. The kernels after these are copies and additions.

A kernel with ``attention`` in its name is always listed: it shows which implementation was dispatched."""

NAME_LENGTH = 100
"""Characters kept of a kernel's name.

Names of CUDA kernels hold template arguments of any length. They differ well before this many characters."""


def kernels_per_site(step: Callable[[], object], cuda: bool) -> list[Measure]:
    """Profile one call of ``step`` and return ``kernel_ms`` (forward and backward) per site and kernel.

    Args:
        step: runs the forward and backward pass of one batch.
        cuda: list CUDA kernels instead of ATen operators.

    Returns:
        Per site the ``LISTED`` slowest kernels and all whose name holds ``attention``, in milliseconds.
    """
    # The profiler below ``torch.profiler.profile``, which would load the compiler: a second of CPU.
    with profile(use_device="cuda" if cuda else None, use_kineto=True) as profiler:
        step()
    times: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for site, event in _events_of_sites(list(profiler.function_events or [])):
        for name, us in _work(event, cuda):
            times[site][name[:NAME_LENGTH]] += us / 1e3  # microseconds to milliseconds
    return [
        Measure("kernel_ms", "ms", ms, site=site, kernel=name)
        for site, kernels in times.items()
        for rank, (name, ms) in enumerate(sorted(kernels.items(), key=lambda item: -item[1]))
        if rank < LISTED or "attention" in name
    ]


def _events_of_sites(events: list[Any]) -> Iterator[tuple[str, Any]]:
    """Yield (site, event) for the operators in the site's range, then for those in their backward nodes."""
    ranges = [e for e in events if e.name.startswith(PREFIX) and e.device_type.name == "CPU"]
    inside = [(event.name[len(PREFIX) :], inner) for event in ranges for inner in _inside(event)]
    yield from inside
    owners = _node_owners(events, {id(event): site for site, event in inside})
    for event in events:
        if event.name.startswith(BACKWARD):
            site = owners.get((event.fwd_thread, event.sequence_nr))
            if site is not None:
                yield from ((site, inner) for inner in _inside(event))


def _node_owners(events: list[Any], site_of: dict[int, str]) -> dict[tuple[int, int], str | None]:
    """Return (thread, sequence number) of a backward node -> the site whose operator made it.

    An operator that makes no node has the sequence number of the next node. So the last operator with a
    number is the one that made the node.
    """
    forward = [
        e for e in events if e.scope == FORWARD and e.sequence_nr >= 0 and not e.name.startswith(BACKWARD)
    ]
    forward.sort(key=lambda event: event.time_range.start)
    return {(event.thread, event.sequence_nr): site_of.get(id(event)) for event in forward}


def _inside(event: Any) -> Iterator[Any]:
    for child in event.cpu_children:
        yield child
        yield from _inside(child)


def _work(event: Any, cuda: bool) -> Iterator[tuple[str, float]]:
    """Yield (name, time in microseconds) of an operator's own work, without that of its children."""
    if cuda:
        yield from ((kernel.name, kernel.duration) for kernel in event.kernels)
    elif event.name.startswith("aten::"):
        yield event.name, event.self_cpu_time_total
