"""Captured forward and backward passes, their buffers, and the autograd node that joins them."""

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
    """Wraps a function of a module as a module, because ``functional_call`` takes a module."""

    def __init__(self, owner: nn.Module, function: Part) -> None:
        super().__init__()
        self.owner, self.function = owner, function

    def forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Call the function."""
        return self.function(*inputs)


class Passes:
    """A forward and a backward pass between buffers.

    Attributes:
        inputs: buffers of the inputs; None where an input is None.
        outputs: the results.
        seeds: buffers of the gradients of the results.
        grads: buffers of the gradients of the inputs, then of the parameters; None for those without one.
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
        # Aliases, because a gradient of a parameter itself would run the hooks on it.
        self._aliases = {name: p.detach().requires_grad_(p.requires_grad) for name, p in parameters.items()}
        self._results: tuple[Tensor, ...] = ()
        self.outputs: tuple[Tensor, ...] = ()
        self.seeds: list[Tensor] = []
        self.grads: list[Tensor | None] = []
        self.reached: list[str] = []

    def rehearse(self) -> None:
        """Run both passes without a change of running statistics, to learn which tensors get gradients."""
        self._run({f"owner.{name}": b.clone() for name, b in self._function.owner.named_buffers()})
        self.seeds = [self._buffer(("seed", i), x) for i, x in enumerate(self._results)]
        names = [*range(len(given(self._leaves))), *self._aliases]
        by_name = dict(zip(names, self._differentiate(), strict=True))
        self.grads = [None if g is None else self._buffer(("grad", name), g) for name, g in by_name.items()]
        self.reached = [name for name in self._aliases if by_name[name] is not None]

    def forward(self) -> None:
        """Fill the outputs from the inputs."""
        self._run({})

    def backward(self) -> None:
        """Fill the gradients from the seeds."""
        grads = self._differentiate()
        torch._foreach_copy_(given(self.grads), given(grads))

    def _run(self, statistics: dict[str, Tensor]) -> None:
        weights = {f"owner.{name}": alias for name, alias in self._aliases.items()}
        # No cache: a capture would read weights that were cast outside of it and are freed later.
        with torch.enable_grad(), torch.autocast(*self._autocast, cache_enabled=False):
            self._results = functional_call(self._function, weights | statistics, tuple(self._leaves))
        self.outputs = tuple(x.detach() for x in self._results)

    def _differentiate(self) -> list[Tensor | None]:
        """Return the gradients of all inputs and parameters, and free what the forward pass kept."""
        results, self._results = self._results, ()
        sources = [*given(self._leaves), *self._aliases.values()]
        trained = [x for x in sources if x.requires_grad]
        with torch.autocast(self._autocast[0], enabled=False):  # as in an ordinary backward pass
            grads = iter(torch.autograd.grad(results, trained, self.seeds, allow_unused=True))
        return [next(grads) if x.requires_grad else None for x in sources]


class Recorder:
    """Captures passes on a GPU, with one stream and one memory pool. On a CPU, for tests, passes just run.

    Args:
        device: where the passes run.
        lane: passes of one lane never run at the same time.

    Attributes:
        turn: number of replays so far. A backward pass must follow its forward pass directly.
        pool: handle of the memory pool; None on a CPU.
    """

    def __init__(self, device: torch.device, lane: str = "main") -> None:
        self.turn = 0
        self.pool: Any = None
        self._device = device
        self._first: Any = None  # kept: a pool whose last graph has gone takes no new one
        if device.type == "cuda":
            self._stream = _stream(device, lane)
            self.pool = torch.cuda.graph_pool_handle()

    def record(self, rehearse: Call, passes: Sequence[Call]) -> list[Call]:
        """Rehearse, capture the passes, and return a function that replays each. The random state stays."""
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
            replays = [self._captured(one) for one in passes]
        main.wait_stream(self._stream)  # there a capture has set the seed that replays read
        return replays

    def _captured(self, one: Call) -> Call:
        graph, failed = torch.cuda.CUDAGraph(), None
        # thread_local: threads of the loader may pin memory during the capture.
        with torch.cuda.graph(graph, self.pool, self._stream, capture_error_mode="thread_local"):
            try:
                one()
            except torch.OutOfMemoryError as error:  # the error at the end of the capture would hide it
                failed = error
        if failed is not None:
            raise failed
        self._first = self._first or graph
        return graph.replay


class Recorders:
    """The recorders of models that train in turn, such as the arms of a cohort: one for each lane.

    Their graphs share a memory pool for intermediate results, because at any time only one pair of passes of
    a lane is between its forward and its backward pass.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[torch.device, str], Recorder] = {}

    def on(self, device: torch.device, lane: str) -> Recorder:
        """Return the recorder of a lane; see ``Recorder``."""
        if (device, lane) not in self._made:
            self._made[device, lane] = Recorder(device, lane)
        return self._made[device, lane]


class Pair:
    """A captured forward pass and its backward pass.

    Args:
        recorder: counts the replays.
        passes: holds the buffers.
        replays: functions that replay the forward and the backward pass.
        parameters: the parameters that get gradients.
    """

    def __init__(
        self, recorder: Recorder, passes: Passes, replays: Sequence[Call], parameters: Sequence[Tensor]
    ) -> None:
        self.parameters = parameters
        self._recorder, self._passes = recorder, passes
        self._forward, self._backward = replays

    def forward(self, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], int]:
        """Return copies of the results, and the turn at which the backward pass must run."""
        _fill(given(self._passes.inputs), inputs)
        self._forward()
        self._recorder.turn += 1
        return tuple(x.clone() for x in self._passes.outputs), self._recorder.turn

    def backward(self, seeds: Sequence[Tensor], turn: int) -> list[Tensor | None]:
        """Return the gradients of the inputs, then of ``parameters``. The next call overwrites them.

        Raises:
            RuntimeError: another pass ran since the forward pass, or this is the second call.
        """
        if turn != self._recorder.turn:
            raise RuntimeError(
                "a backward pass through CUDA graphs must follow its forward pass, once: another pass has "
                "overwritten what it needs (TrainSettings.cuda_graphs=False trains without graphs)"
            )
        self._recorder.turn += 1
        count = len(given(self._passes.inputs))
        grads = [*self._passes.grads[:count], *given(self._passes.grads[count:])]
        for parameter, own in zip(self.parameters, given(grads[count:]), strict=True):
            if parameter.grad is not None and parameter.grad.data_ptr() == own.data_ptr():
                parameter.grad = parameter.grad.clone()  # from an earlier call, to which this one is added
        _fill(self._passes.seeds, seeds)
        self._backward()
        return [None if x is None else x.detach() for x in grads]


class FrozenPass:
    """A captured forward pass without a backward pass."""

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
    """The autograd node that joins the two passes of a pair."""

    @staticmethod
    def forward(ctx: Any, pair: Pair, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Replay the forward pass; ``tensors`` are the inputs, then the parameters."""
        ctx.pair = pair
        results, ctx.turn = pair.forward(tensors[: len(tensors) - len(pair.parameters)])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Replay the backward pass."""
        return None, *ctx.pair.backward(grads, ctx.turn)


@cache
def _stream(device: torch.device, lane: str) -> torch.cuda.Stream:
    """Return the stream of all captures of a lane; cuBLAS keeps 32 MiB for every stream that it has used."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def kinds(inputs: Values) -> Hashable:
    """Return a key that is equal for two calls of a captured function that one capture can serve."""
    autocast = _autocast(given(inputs)[0].device.type)
    return autocast, tuple(None if x is None else kind(x) for x in inputs)


def kind(x: Tensor) -> tuple[Hashable, ...]:
    """Return a key of what decides the memory and the kernels of a tensor."""
    return x.shape, x.stride(), x.dtype, x.device, x.requires_grad


def _autocast(device: str) -> tuple[str, torch.dtype, bool]:
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


def given(values: Sequence[Tensor | None]) -> list[Tensor]:
    """Return the values that are not None."""
    return [x for x in values if x is not None]


def _fill(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for own, x in zip(buffers, values, strict=True):
        own.copy_(x)
