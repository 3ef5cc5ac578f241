"""CUDA graphs for inference: a part of a detector is launched in one call instead of kernel by kernel.

At batch size 1 the host takes longer to launch a part's hundreds of kernels than the GPU takes to run them. A
part is a function of tensors for which the host needs only shapes. It is captured once per kind of input.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from pipeline.config.plan import Choice

Part = Callable[..., tuple[Tensor, ...]]
"""A function from tensors to tensors on one device."""

CAPTURED = frozenset({"rects", "sdpa_cudnn", "sdpa_efficient", "sdpa_flash", "sdpa_math"})
"""Implementations of attention that a test has captured with the same bits (``test_cuda_graph.py``)."""

MOST = 12
"""Number of graphs that are kept: four plans of three parts. Each holds memory for its part's results."""

WARM = 2
"""Calls before a capture. The first compiles, picks algorithms and makes constants: a capture must not."""

log = logging.getLogger(__name__)


class Gate:
    """Admits implementations of attention to graphs."""

    def __init__(self) -> None:
        self._refused: set[tuple[str, ...]] = set()

    def admit(self, impls: Iterable[str]) -> bool:
        """Whether all implementations can be captured. If not, log once which cannot."""
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
    """The captured parts of one model. Its weights must stay in place in memory; their values may change.

    Args:
        most: number of graphs that are kept. Beyond it, the least recently used one is dropped.
    """

    def __init__(self, most: int = MOST) -> None:
        super().__init__()
        self._kept: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._most = most

    def __len__(self) -> int:
        """Return the number of graphs that are kept."""
        return len(self._kept)

    def run(self, part: str, key: Hashable, function: Part, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run a part; the first call captures it.

        Args:
            part: name of the part.
            key: everything besides the inputs that decides what the part computes.
            function: the part; it is not kept.
            inputs: copied into the graph's buffers.

        Returns:
            The results of the function, with the same bits. They are copies, which later calls do not change.
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
    """Run a part through its owner's graphs, if that is possible.

    It runs kernel by kernel in training, with gradients, and if an implementation of attention in it is not
    in ``CAPTURED``.

    Args:
        owner: module with the attribute ``graphs``.
        part: name of the part.
        function: the part.
        inputs: its arguments.
        choices: of the attention sites in the part.
        key: everything else that decides what the part computes.
    """
    graphs: Graphs | None = owner.graphs
    if graphs is None or owner.training or torch.is_grad_enabled():
        return function(*inputs)
    if not graphs.admit(choice.impl for choice in choices):
        return function(*inputs)
    return graphs.run(part, (choices, key), function, inputs)


class _Graph:
    """One capture, with its input and output buffers."""

    def __init__(self, function: Part, inputs: tuple[Tensor, ...]) -> None:
        device = inputs[0].device
        with torch.inference_mode(False):  # a buffer made in inference mode cannot be filled outside of it
            self._inputs = tuple(torch.empty_like(x) for x in inputs)
        self._fill(inputs)
        # A stream per graph: cuBLAS keeps a workspace per stream, and two parts may run at the same time.
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        # No cache: the capture would read weights that were cast outside of it and are freed later.
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", dtype, enabled, cache_enabled=False):
            with torch.cuda.stream(stream):
                for _ in range(WARM):
                    function(*self._inputs)
            torch.cuda.current_stream(device).wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # thread_local: threads of the loader may pin memory during the capture
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._outputs = function(*self._inputs)

    def replay(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self._fill(inputs)
        self._graph.replay()
        return tuple(x.clone() for x in self._outputs)

    def _fill(self, inputs: tuple[Tensor, ...]) -> None:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
