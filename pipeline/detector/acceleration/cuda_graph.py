"""Parts of a detector whose kernels a GPU gets in one call instead of one by one from Python.

At batch 1 the host takes longer to launch a part's hundreds of kernels than the GPU to run them. A part is a
function of tensors that asks nothing of the host but shapes; it is captured once per kind of input.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from pipeline.config.plan import Choice

Part = Callable[..., tuple[Tensor, ...]]
"""Tensors of one device to tensors of it."""

CAPTURED = frozenset({"rects", "sdpa_cudnn", "sdpa_efficient", "sdpa_flash", "sdpa_math"})
"""Implementations of attention that were captured and gave the same bits (``tests/.../test_graph.py``)."""

MOST = 12
"""Graphs that are kept; each holds memory for its part's results. Four plans of three parts."""

WARM = 2
"""Calls before a capture: the first compiles, picks algorithms and makes constants; capturing allows none."""

log = logging.getLogger(__name__)


class Gate:
    """Keeps away from graphs what was never captured."""

    def __init__(self) -> None:
        self._refused: set[tuple[str, ...]] = set()

    def admit(self, impls: Iterable[str]) -> bool:
        """Say whether all implementations can be captured; if not, log which cannot, once."""
        others = tuple(sorted(set(impls) - CAPTURED))
        if others and others not in self._refused:
            self._refused.add(others)
            log.warning(
                "the head runs without a CUDA graph: no test has captured %s (only %s)",
                " or ".join(others),
                ", ".join(sorted(CAPTURED)),
            )
        return not others


class Graphs(Gate):
    """The captured parts of one model, whose weights must stay where they are (their values may change).

    Args:
        most: graphs kept; the one that was not used for longest is dropped.
    """

    def __init__(self, most: int = MOST) -> None:
        super().__init__()
        self._kept: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._most = most

    def __len__(self) -> int:
        """Return how many graphs are kept."""
        return len(self._kept)

    def run(self, part: str, key: Hashable, function: Part, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run a part, captured the first time.

        Args:
            part: its name.
            key: whatever else than the inputs decides what it computes.
            function: the part; not kept.
            inputs: copied into the graph's own.

        Returns:
            What the function returns, the same bits; copies, which the next call leaves alone.
        """
        kind = tuple((x.shape, x.stride(), x.dtype, x.device) for x in inputs)
        at = (part, key, torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), kind)
        if at not in self._kept:
            self._kept[at] = _Graph(function, inputs)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(at)
        return self._kept[at].replay(inputs)


def replayed(
    owner: Any,
    part: str,
    function: Part,
    inputs: tuple[Tensor, ...],
    choices: tuple[Choice, ...] = (),
    key: tuple[Hashable, ...] = (),
) -> tuple[Tensor, ...]:
    """Run a part, through its owner's graphs where there are any.

    A model that trains or keeps gradients runs without, so does a part whose attention is not ``CAPTURED``.

    Args:
        owner: module with ``graphs``.
        part: its name.
        function: the part.
        inputs: its arguments.
        choices: of the attention sites in it.
        key: whatever else decides what it computes.
    """
    graphs: Graphs | None = owner.graphs
    if graphs is None or owner.training or torch.is_grad_enabled():
        return function(*inputs)
    if not graphs.admit(choice.impl for choice in choices):
        return function(*inputs)
    return graphs.run(part, (choices, key), function, inputs)


class _Graph:
    """One capture: its inputs, its outputs, and the kernels between them."""

    def __init__(self, function: Part, inputs: tuple[Tensor, ...]) -> None:
        device = inputs[0].device
        with torch.inference_mode(False):  # inputs of inference mode could not be filled outside of it
            self._inputs = tuple(torch.empty_like(x) for x in inputs)
        self._fill(inputs)
        # A stream of its own: cuBLAS keeps a workspace per stream, and two parts may run at a time.
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        # Autocast's cache would hand the capture weights that were cast outside and are freed afterwards.
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", dtype, enabled, cache_enabled=False):
            with torch.cuda.stream(stream):
                for _ in range(WARM):
                    function(*self._inputs)
            torch.cuda.current_stream(device).wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # thread_local: a loader's thread that pins memory meanwhile does no harm
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._outputs = function(*self._inputs)

    def replay(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self._fill(inputs)
        self._graph.replay()
        return tuple(x.clone() for x in self._outputs)

    def _fill(self, inputs: tuple[Tensor, ...]) -> None:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
