"""What a training step through CUDA graphs replays: captured passes, buffers, the node that joins them."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from pipeline.detector.acceleration.cuda_graph import WARM, Part

Values = tuple[Tensor | None, ...]
Call = Callable[[], None]
Buffer = Callable[[Hashable, Tensor], Tensor]


class _Function(nn.Module):
    """A function of a module, as ``functional_call`` takes it."""

    def __init__(self, owner: nn.Module, function: Part) -> None:
        super().__init__()
        self.owner, self.function = owner, function

    def forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Call the function."""
        return self.function(*inputs)


class Passes:
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
        self._autocast = _autocast(given(inputs)[0].device.type)
        self.inputs = [None if x is None else buffer(("input", i), x) for i, x in enumerate(inputs)]
        _fill(given(self.inputs), given(inputs))
        self._leaves = [
            None if own is None or x is None else own.detach().requires_grad_(x.requires_grad)
            for own, x in zip(self.inputs, inputs, strict=True)
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
        names = [*range(len(given(self._leaves))), *self._aliases]
        found = dict(zip(names, self._differentiate(), strict=True))
        self.grads = [None if g is None else self._buffer(("grad", name), g) for name, g in found.items()]
        self.reached = [name for name in self._aliases if found[name] is not None]

    def forward(self) -> None:
        """Fill the outputs from the inputs."""
        self._run({})

    def backward(self) -> None:
        """Fill the gradients from the seeds."""
        found = self._differentiate()
        torch._foreach_copy_(given(self.grads), given(found))

    def _run(self, statistics: dict[str, Tensor]) -> None:
        weights = {f"owner.{name}": alias for name, alias in self._aliases.items()}
        # Autocast's cache would hand a capture weights that were cast outside and are freed afterwards.
        with torch.enable_grad(), torch.autocast(*self._autocast, cache_enabled=False):
            self._results = functional_call(self._function, weights | statistics, tuple(self._leaves))
        self.outputs = tuple(x.detach() for x in self._results)

    def _differentiate(self) -> list[Tensor | None]:
        """Return the gradients of all inputs and parameters; what the forward pass kept is freed."""
        results, self._results = self._results, ()
        sources = [*given(self._leaves), *self._aliases.values()]
        wanted = [x for x in sources if x.requires_grad]
        with torch.autocast(self._autocast[0], enabled=False):  # as in a backward pass outside of it
            found = iter(torch.autograd.grad(results, wanted, self.seeds, allow_unused=True))
        return [next(found) if x.requires_grad else None for x in sources]


class Recorder:
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


class Pair:
    """A forward and a backward pass that are replayed.

    Args:
        recorder: keeps the turns.
        passes: their buffers.
        replays: of the forward and of the backward pass.
        parameters: those that get gradients.
    """

    def __init__(
        self, recorder: Recorder, passes: Passes, replays: Sequence[Call], parameters: Sequence[Tensor]
    ) -> None:
        self.parameters = parameters
        self._recorder, self._passes = recorder, passes
        self._forward, self._backward = replays

    def forward(self, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], int]:
        """Return copies of the results, and the turn in which the backward pass must come."""
        _fill(given(self._passes.inputs), inputs)
        self._forward()
        self._recorder.turn += 1
        return tuple(x.clone() for x in self._passes.outputs), self._recorder.turn

    def backward(self, seeds: Sequence[Tensor], turn: int) -> list[Tensor | None]:
        """Return the gradients of the inputs, and then of ``parameters``: buffers, until the next call."""
        if turn != self._recorder.turn:
            raise RuntimeError(
                "a backward pass through CUDA graphs must follow its forward pass, once: what that kept was "
                "overwritten by another pass (TrainSettings.cuda_graphs=False trains without graphs)"
            )
        self._recorder.turn += 1
        count = len(given(self._passes.inputs))
        grads = [*self._passes.grads[:count], *given(self._passes.grads[count:])]
        for parameter, own in zip(self.parameters, given(grads[count:]), strict=True):
            if parameter.grad is not None and parameter.grad.data_ptr() == own.data_ptr():
                parameter.grad = parameter.grad.clone()  # of a call before, to which this one is added
        _fill(self._passes.seeds, seeds)
        self._backward()
        return [None if x is None else x.detach() for x in grads]


class FrozenPass:
    """A forward pass without a backward pass."""

    def __init__(self, module: nn.Module, x: Tensor, buffer: Buffer, recorder: "Recorder") -> None:
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


class Replay(torch.autograd.Function):
    """Joins the two passes of a pair."""

    @staticmethod
    def forward(ctx: Any, pair: Pair, *tensors: Tensor) -> tuple[Tensor, ...]:
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


def kinds(inputs: Values) -> Hashable:
    """Return what must be alike in two calls of a captured function, beside the numbers."""
    autocast = _autocast(given(inputs)[0].device.type)
    return autocast, tuple(None if x is None else kind(x) for x in inputs)


def kind(x: Tensor) -> tuple[Hashable, ...]:
    """Return what decides which memory and which kernels a tensor takes."""
    return x.shape, x.stride(), x.dtype, x.device, x.requires_grad


def _autocast(device: str) -> tuple[str, torch.dtype, bool]:
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


def given(values: Sequence[Tensor | None]) -> list[Tensor]:
    """Leave out what is None."""
    return [x for x in values if x is not None]


def _fill(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for own, x in zip(buffers, values, strict=True):
        own.copy_(x)
