"""CUDA graphs for training: the forward and the backward pass of a part of the model, one launch each.

In a training step of a few samples the GPU waits for the host, which launches thousands of small kernels.
Here the forward and the backward pass of a part are captured once per kind of input, and one autograd node
joins them.
"""

import logging
from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.detector.acceleration.captured_passes import (
    FrozenPass,
    Pair,
    Passes,
    Recorder,
    Recorders,
    Replay,
    Values,
    given,
    kind,
    kinds,
)
from pipeline.detector.acceleration.cuda_graph import Gate, Part

MOST = 24
"""Number of pairs of graphs that are kept: eight numbers of slots under three plans. A pair holds some MB."""

log = logging.getLogger(__name__)


class TrainGraphs(Gate):
    """The captured passes of one module. Its parameters must stay the same objects.

    All pairs share one memory pool and their input and output buffers, because at any time only one pair is
    between its forward and its backward pass. The random state advances as if the part had run kernel by
    kernel, and running statistics are updated once per call.

    A kind of input runs kernel by kernel the first time and is captured the second time, so that rare sizes
    get no graph. The allocator's statistics count the memory of the pool as free (``held_bytes``).

    Args:
        owner: the module whose function is captured.
        most: number of graphs and pairs that are kept; later kinds of input run kernel by kernel.
        lane: captures that may be replayed at the same time need another lane, and another instance.
        recorders: of the models that train in turn with this one; None: there is no other.
    """

    def __init__(
        self,
        owner: nn.Module,
        most: int = MOST,
        lane: str = "main",
        recorders: Recorders | None = None,
    ) -> None:
        super().__init__()
        self._lane = lane
        self._recorders = recorders or Recorders()
        self._owner = owner
        self._parameters = dict(owner.named_parameters())
        self._pairs: dict[Hashable, Pair] = {}
        self._frozen: dict[Hashable, FrozenPass] = {}
        self._parts: dict[nn.Module, tuple[list[nn.Parameter], list[_BatchNorm]]] = {}
        self._most = most
        self._seen: set[Hashable] = set()
        self._full = False
        self._buffers: dict[Hashable, Tensor] = {}
        self._recorder: Recorder | None = None

    def __len__(self) -> int:
        """Return the number of graphs and pairs that are kept."""
        return len(self._pairs) + len(self._frozen)

    def run(self, key: Hashable, function: Part, inputs: Values) -> tuple[Tensor, ...]:
        """Run a function of the module and of tensors.

        Args:
            key: everything besides inputs and parameters that decides what the function computes.
            function: needs only shapes on the host; all its results have gradients.
            inputs: tensors on one device, or None.

        Returns:
            Copies of the function's results, with gradients to inputs and parameters.
        """
        parameters = tuple((p.data_ptr(), p.requires_grad) for p in self._parameters.values())
        at = (key, parameters, kinds(inputs))
        pair = self._pairs.get(at)
        if pair is None:
            if not self._comes_again(at):
                return function(*inputs)
            recorder = self._recorder_on(given(inputs)[0].device)
            passes = Passes(self._owner, function, self._parameters, inputs, self._buffer)
            replays = recorder.record(passes.rehearse, (passes.forward, passes.backward))
            reached = [self._parameters[name] for name in passes.reached]
            pair = self._pairs[at] = Pair(recorder, passes, replays, reached)
        results: tuple[Tensor, ...] = Replay.apply(pair, *given(inputs), *pair.parameters)  # type: ignore[no-untyped-call]
        return results

    def run_frozen(self, module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        """Run a frozen module without gradients; call it before ``run`` of the same step.

        Args:
            module: returns a tuple for a tensor. If anything in it trains, it runs kernel by kernel.
            x: its input, without gradient.
        """
        if module not in self._parts:  # cached, because walking through a backbone takes a millisecond
            norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
            self._parts[module] = (list(module.parameters()), norms)
        parameters, norms = self._parts[module]
        trains = any(p.requires_grad for p in parameters) or any(norm.training for norm in norms)
        at = (module, tuple(p.data_ptr() for p in parameters), kinds((x,)))
        if x.requires_grad or trains or not (at in self._frozen or self._comes_again(at)):
            return tuple(module(x))
        if at not in self._frozen:
            self._frozen[at] = FrozenPass(module, x, self._buffer, self._recorder_on(x.device))
        return self._frozen[at].replay(x)

    def _comes_again(self, at: Hashable) -> bool:
        """Whether to capture now: this kind of input came before, and there is room for a graph."""
        seen = at in self._seen
        self._seen.add(at)
        full = len(self) >= self._most
        if seen and full and not self._full:
            log.warning(
                "training has %d CUDA graphs; further plans and sizes run kernel by kernel", self._most
            )
            self._full = True
        return seen and not full

    def _recorder_on(self, device: torch.device) -> Recorder:
        self._recorder = self._recorder or self._recorders.on(device, self._lane)
        return self._recorder

    @property
    def held_bytes(self) -> int:
        """Memory in bytes that is kept for replays and that the allocator does not count as allocated."""
        pool = None if self._recorder is None else self._recorder.pool
        if pool is None:
            return 0
        segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        own = [s for s in segments if tuple(s["segment_pool_id"]) == tuple(pool)]
        return sum(int(s["total_size"] - s["allocated_size"]) for s in own)

    def _buffer(self, role: Hashable, like: Tensor) -> Tensor:
        """Return a buffer like a tensor; all pairs get the same buffer for the same role."""
        at = (role, *kind(like))
        if at not in self._buffers:
            self._buffers[at] = torch.zeros_like(like, requires_grad=False)
        return self._buffers[at]
