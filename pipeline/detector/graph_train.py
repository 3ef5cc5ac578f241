"""CUDA graphs in training: forward and backward pass of a part of the model, one launch each.

A training step of a few samples waits for the host, which launches thousands of small kernels. Here a part's
forward pass and its backward pass are captured once per kind of input, and joined by one autograd node.
"""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.detector.graph import WARM, Gate, Part

MOST = 24
"""Pairs of graphs that are kept: eight numbers of denoising slots under three plans. A pair holds some MB."""

log = logging.getLogger(__name__)

Values = tuple[Tensor | None, ...]
Call = Callable[[], None]
Buffer = Callable[[Hashable, Tensor], Tensor]


class TrainGraphs(Gate):
    """The captured passes of one module, whose parameters must stay the same objects.

    All share one pool of memory, because only one pair is between its forward and its backward pass at a
    time; what goes in and what comes out of them lies in buffers that they share too. The random state
    moves as if the part had run kernel by kernel, and running statistics are updated once a call.

    What comes for the first time runs as it is, and is captured when it comes again: rare sizes are not worth
    a graph. The memory of the pool counts as free in the allocator's statistics: see ``held_bytes``.

    Args:
        owner: the module whose function is captured.
        most: graphs or pairs of them kept; what comes later runs kernel by kernel.
    """

    def __init__(self, owner: nn.Module, most: int = MOST) -> None:
        super().__init__()
        self._owner = owner
        self._parameters = dict(owner.named_parameters())
        self._pairs: dict[Hashable, _Pair] = {}
        self._frozen: dict[Hashable, _Frozen] = {}
        self._parts: dict[nn.Module, tuple[list[nn.Parameter], list[_BatchNorm]]] = {}
        self._most = most
        self._seen: set[Hashable] = set()
        self._full = False
        self._buffers: dict[Hashable, Tensor] = {}
        self._recorder: _Recorder | None = None

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._pairs) + len(self._frozen)

    def run(self, key: Hashable, function: Part, inputs: Values) -> tuple[Tensor, ...]:
        """Run a function of the module and of tensors.

        Args:
            key: whatever else than inputs and parameters decides what it computes.
            function: asks nothing of the host but shapes; its results all have gradients.
            inputs: tensors of one device; None is handed on.

        Returns:
            What the function returns, with gradients to inputs and parameters; copies.
        """
        parameters = tuple((p.data_ptr(), p.requires_grad) for p in self._parameters.values())
        at = (key, parameters, _kinds(inputs))
        pair = self._pairs.get(at)
        if pair is None:
            if not self._comes_again(at):
                return function(*inputs)
            recorder = self._recorder_on(_given(inputs)[0].device)
            passes = _Passes(self._owner, function, self._parameters, inputs, self._buffer)
            replays = recorder.record(passes.rehearse, (passes.forward, passes.backward))
            reached = [self._parameters[name] for name in passes.reached]
            pair = self._pairs[at] = _Pair(recorder, passes, replays, reached)
        found: tuple[Tensor, ...] = _Replay.apply(pair, *_given(inputs), *pair.parameters)  # type: ignore[no-untyped-call]
        return found

    def run_frozen(self, module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        """Run a module in which nothing trains, without gradients, before the pair of the same step.

        Args:
            module: makes a tuple of a tensor; one that trains runs as it is.
            x: its input, without gradient.
        """
        if module not in self._parts:  # looked up once: walking through a backbone takes a millisecond
            norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
            self._parts[module] = (list(module.parameters()), norms)
        parameters, norms = self._parts[module]
        trains = any(p.requires_grad for p in parameters) or any(norm.training for norm in norms)
        at = (module, tuple(p.data_ptr() for p in parameters), _kinds((x,)))
        if x.requires_grad or trains or not (at in self._frozen or self._comes_again(at)):
            return tuple(module(x))
        if at not in self._frozen:
            self._frozen[at] = _Frozen(module, x, self._buffer, self._recorder_on(x.device))
        return self._frozen[at].replay(x)

    def _comes_again(self, at: Hashable) -> bool:
        """Tell whether to capture what comes now."""
        seen = at in self._seen
        self._seen.add(at)
        full = len(self) >= self._most
        if seen and full and not self._full:
            log.warning(
                "training has %d CUDA graphs; further plans and sizes run kernel by kernel", self._most
            )
            self._full = True
        return seen and not full

    def _recorder_on(self, device: torch.device) -> "_Recorder":
        self._recorder = self._recorder or _Recorder(device)
        return self._recorder

    @property
    def held_bytes(self) -> int:
        """Memory that is kept for replays and that the allocator does not count as allocated."""
        pool = None if self._recorder is None else self._recorder.pool
        if pool is None:
            return 0
        segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        own = [s for s in segments if tuple(s["segment_pool_id"]) == tuple(pool)]
        return sum(int(s["total_size"] - s["allocated_size"]) for s in own)

    def _buffer(self, role: Hashable, like: Tensor) -> Tensor:
        """Return memory like a tensor, the same for every pair that asks with the same role."""
        at = (role, *_kind(like))
        if at not in self._buffers:
            self._buffers[at] = torch.zeros_like(like, requires_grad=False)
        return self._buffers[at]


class _Function(nn.Module):
    """A function of a module, as ``functional_call`` takes it."""

    def __init__(self, owner: nn.Module, function: Part) -> None:
        super().__init__()
        self.owner, self.function = owner, function

    def forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Call the function."""
        return self.function(*inputs)


class _Passes:
    """A forward and a backward pass between buffers.

    Attributes:
        inputs, outputs, seeds, grads: buffers: what goes in; what comes out; the gradients of what came out;
            and those of inputs and then parameters, None for what gets none.
        reached: names of the parameters that the results depend on.
    """

    def __init__(
        self,
        owner: nn.Module,
        function: Part,
        parameters: Mapping[str, Tensor],
        inputs: Values,
        buffer: Buffer,
    ) -> None:
        self._function, self._buffer = _Function(owner, function), buffer
        self._autocast = _autocast(_given(inputs)[0].device.type)
        self.inputs = [None if x is None else buffer(("input", i), x) for i, x in enumerate(inputs)]
        _fill(_given(self.inputs), _given(inputs))
        self._leaves = [
            None if own is None or given is None else own.detach().requires_grad_(given.requires_grad)
            for own, given in zip(self.inputs, inputs, strict=True)
        ]
        # Aliases: gradients of the parameters themselves would run what DDP has hooked to them.
        self._aliases = {name: p.detach().requires_grad_(p.requires_grad) for name, p in parameters.items()}
        self._results: tuple[Tensor, ...] = ()
        self.outputs: tuple[Tensor, ...] = ()
        self.seeds: list[Tensor] = []
        self.grads: list[Tensor | None] = []
        self.reached: list[str] = []

    def rehearse(self) -> None:
        """Run both passes without a trace in running statistics; learn what gets gradients."""
        self._run({f"owner.{name}": b.clone() for name, b in self._function.owner.named_buffers()})
        self.seeds = [self._buffer(("seed", i), x) for i, x in enumerate(self._results)]
        names = [*range(len(_given(self._leaves))), *self._aliases]
        found = dict(zip(names, self._differentiate(), strict=True))
        self.grads = [None if g is None else self._buffer(("grad", name), g) for name, g in found.items()]
        self.reached = [name for name in self._aliases if found[name] is not None]

    def forward(self) -> None:
        """Fill the outputs from the inputs."""
        self._run({})

    def backward(self) -> None:
        """Fill the gradients from the seeds."""
        found = self._differentiate()
        torch._foreach_copy_(_given(self.grads), _given(found))

    def _run(self, statistics: dict[str, Tensor]) -> None:
        weights = {f"owner.{name}": alias for name, alias in self._aliases.items()}
        # Autocast's cache would hand a capture weights that were cast outside and are freed afterwards.
        with torch.enable_grad(), torch.autocast(*self._autocast, cache_enabled=False):
            self._results = functional_call(self._function, weights | statistics, tuple(self._leaves))
        self.outputs = tuple(x.detach() for x in self._results)

    def _differentiate(self) -> list[Tensor | None]:
        """Return the gradients of all inputs and parameters; what the forward pass kept is freed."""
        results, self._results = self._results, ()
        sources = [*_given(self._leaves), *self._aliases.values()]
        wanted = [x for x in sources if x.requires_grad]
        with torch.autocast(self._autocast[0], enabled=False):  # as in a backward pass outside of it
            found = iter(torch.autograd.grad(results, wanted, self.seeds, allow_unused=True))
        return [next(found) if x.requires_grad else None for x in sources]


class _Recorder:
    """Where passes are captured: a stream and a pool on a GPU. On a CPU they run anew each time, for tests.

    Attributes:
        turn: replays so far: nothing may come between a forward pass and its backward pass.
        pool: handle of the memory; None on a CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.turn = 0
        self.pool: Any = None
        self._device = device
        if device.type == "cuda":
            self._stream = _stream(device)
            self.pool = torch.cuda.graph_pool_handle()

    def record(self, rehearse: Call, passes: Sequence[Call]) -> list[Call]:
        """Rehearse, capture the passes, and return what replays each; the random state stays as it is."""
        if self._device.type != "cuda":
            with torch.random.fork_rng(devices=[]):
                rehearse()
            return list(passes)
        main = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(main)
        with torch.random.fork_rng(devices=[self._device]):
            with torch.cuda.stream(self._stream):
                for _ in range(WARM):
                    rehearse()
            main.wait_stream(self._stream)
            return [self._captured(one) for one in passes]

    def _captured(self, one: Call) -> Call:
        graph, failed = torch.cuda.CUDAGraph(), None
        # thread_local: a loader's thread that pins memory meanwhile does no harm.
        with torch.cuda.graph(graph, self.pool, self._stream, capture_error_mode="thread_local"):
            try:
                one()
            except torch.OutOfMemoryError as error:  # the end of a capture would hide it
                failed = error
        if failed is not None:
            raise failed
        return graph.replay


class _Pair:
    """A forward and a backward pass that are replayed.

    Args:
        recorder: keeps the turns.
        passes: their buffers.
        replays: of the forward and of the backward pass.
        parameters: those that get gradients.
    """

    def __init__(
        self, recorder: _Recorder, passes: _Passes, replays: Sequence[Call], parameters: Sequence[Tensor]
    ) -> None:
        self.parameters = parameters
        self._recorder, self._passes = recorder, passes
        self._forward, self._backward = replays

    def forward(self, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], int]:
        """Return copies of the results, and the turn in which the backward pass must come."""
        _fill(_given(self._passes.inputs), inputs)
        self._forward()
        self._recorder.turn += 1
        return tuple(x.clone() for x in self._passes.outputs), self._recorder.turn

    def backward(self, seeds: Sequence[Tensor], turn: int) -> list[Tensor | None]:
        """Return the gradients of the inputs, and then of ``parameters``: buffers, until the next call."""
        if turn != self._recorder.turn:
            raise RuntimeError(
                "a backward pass through CUDA graphs must follow its forward pass, once: what that kept was "
                "overwritten by another pass (TrainSettings.graph=False trains without graphs)"
            )
        self._recorder.turn += 1
        count = len(_given(self._passes.inputs))
        grads = [*self._passes.grads[:count], *_given(self._passes.grads[count:])]
        for parameter, own in zip(self.parameters, _given(grads[count:]), strict=True):
            if parameter.grad is not None and parameter.grad.data_ptr() == own.data_ptr():
                parameter.grad = parameter.grad.clone()  # of a call before, to which this one is added
        _fill(self._passes.seeds, seeds)
        self._backward()
        return [None if x is None else x.detach() for x in grads]


class _Frozen:
    """A forward pass without a backward pass."""

    def __init__(self, module: nn.Module, x: Tensor, buffer: Buffer, recorder: "_Recorder") -> None:
        self._module, self._recorder = module, recorder
        self._autocast = _autocast(x.device.type)
        self._input = buffer(("input", 0), x)
        self._input.copy_(x)
        self._outputs: tuple[Tensor, ...] = ()
        (self._replay,) = recorder.record(self._forward, (self._forward,))

    def replay(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return copies of the results."""
        self._input.copy_(x)
        self._replay()
        self._recorder.turn += 1
        return tuple(x.clone() for x in self._outputs)

    def _forward(self) -> None:
        with torch.no_grad(), torch.autocast(*self._autocast, cache_enabled=False):
            self._outputs = tuple(self._module(self._input))


class _Replay(torch.autograd.Function):
    """Joins the two passes of a pair."""

    @staticmethod
    def forward(ctx: Any, pair: _Pair, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Replay the forward pass on inputs, which the parameters follow."""
        ctx.pair = pair
        found, ctx.turn = pair.forward(tensors[: len(tensors) - len(pair.parameters)])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Replay the backward pass."""
        return None, *ctx.pair.backward(grads, ctx.turn)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all captures; cuBLAS keeps 32 MiB for every stream that it has ever seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _kinds(inputs: Values) -> Hashable:
    """Return what must be alike in two calls of a captured function, beside the numbers."""
    autocast = _autocast(_given(inputs)[0].device.type)
    return autocast, tuple(None if x is None else _kind(x) for x in inputs)


def _kind(x: Tensor) -> tuple[Hashable, ...]:
    return x.shape, x.stride(), x.dtype, x.device, x.requires_grad


def _autocast(device: str) -> tuple[str, torch.dtype, bool]:
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


def _given(values: Sequence[Tensor | None]) -> list[Tensor]:
    return [x for x in values if x is not None]


def _fill(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for own, given in zip(buffers, values, strict=True):
        own.copy_(given)
