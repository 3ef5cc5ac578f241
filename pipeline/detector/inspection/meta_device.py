"""Building and running modules on the meta device, where a tensor has a shape and no values."""

import importlib
import math
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.runtime.without_dynamo import without_dynamo


@contextmanager
def meta_device() -> Iterator[None]:
    """Make the meta device the default, without loading TorchDynamo or sympy: two seconds of CPU."""
    with without_dynamo(), _without_sympy(), torch.device("meta"), _ValuesLeftOut():
        yield


class _ValuesLeftOut(TorchFunctionMode):
    """Leaves out what computes values only."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of PyTorch, or its form that computes the shape alone."""
        return _SHAPE_ALONE.get(func, func)(*args, **(kwargs or {}))


def _same(*given: Any, **named: Any) -> Any:
    return next(iter((*given, *named.values())))


def _normalised(x: Tensor, *channels: Any, **named: Any) -> Tensor:
    """Return the input of a batch norm, whose arguments are those of PyTorch's.

    Raises:
        RuntimeError: its statistics and parameters are not of as many channels.
    """
    for given in (*channels, *named.values()):
        if isinstance(given, Tensor) and given.shape != x.shape[1:2]:
            raise RuntimeError(f"a batch norm of {len(given)} channels got {x.shape[1]}")
    return x


def _resized(x: Tensor, size: Any = None, scale_factor: Any = None, *_: Any, **__: Any) -> Tensor:
    """Return a map of the shape of ``interpolate``, whose arguments are those of PyTorch's."""
    if size is None:
        size = [math.floor(n * f) for n, f in zip(x.shape[2:], _each(scale_factor, x), strict=True)]
    return x.new_empty(*x.shape[:2], *_each(size, x))


def _each(value: Any, x: Tensor) -> Sequence[Any]:
    """Return one value for each axis of the map."""
    return value if isinstance(value, list | tuple) else (value,) * (x.ndim - 2)


_SHAPE_ALONE: dict[Callable[..., Any], Callable[..., Any]] = {
    nn.init.normal_: _same,
    Tensor.normal_: _same,
    torch.randn: torch.empty,
    nn.functional.batch_norm: _normalised,
    nn.functional.hardsigmoid: _same,
    nn.functional.interpolate: _resized,
}
"""Function of PyTorch that is slow on meta tensors -> a form that computes the shape alone."""


_FORMULAS = "torch.fx.experimental.symbolic_shapes"

_OF_NUMBERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("expect_true", "guard_or_false", "guard_or_true"), bool),
    **dict.fromkeys(("guard_size_oblivious", "statically_known_true"), bool),
    "sym_and": lambda *given: all(given),
    "sym_or": lambda *given: any(given),
    "sym_eq": operator.eq,
    "is_nested_int": lambda size: False,
    "has_guarding_hint": lambda size: True,
    "guarding_hint_or_throw": lambda size: size,
}
"""What functions of ``_FORMULAS`` do with sizes that are numbers."""


class _StandIn(ModuleType):
    """A module that has a few names; asked for another one, it loads the module itself."""

    def real(self) -> ModuleType:
        """Return the module itself."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and not (name == "__path__" and self.__name__ == "sympy"):
            raise AttributeError(name)  # the import system asks for them, and a module has no __path__
        return getattr(self.real(), name)


class _OfSympy(type):
    """Type of a class whose instances are those of ``sympy.Basic``: none before sympy is loaded."""

    def __instancecheck__(cls, instance: Any) -> bool:
        loaded = sys.modules["sympy"]
        return not isinstance(loaded, _StandIn) and isinstance(instance, loaded.Basic)


@contextmanager
def _without_sympy() -> Iterator[None]:
    """Keep PyTorch from loading sympy.

    Functions of meta tensors check their sizes, which might be formulas, by functions of one module, which
    loads sympy. Stand-ins serve numbers.
    """
    formulas, sympy = _StandIn(_FORMULAS), _StandIn("sympy")
    for name, of_numbers in _OF_NUMBERS.items():
        formulas.__dict__[name] = partial(_checked, formulas, name, of_numbers)
    sympy.__dict__["Basic"] = _OfSympy("Basic", (), {})
    new = {one.__name__: one for one in (formulas, sympy) if one.__name__ not in sys.modules}
    sys.modules.update(new)
    try:
        yield
    finally:
        for name, one in new.items():
            if sys.modules.get(name) is one:
                del sys.modules[name]


def _checked(formulas: _StandIn, name: str, of_numbers: Callable[..., Any], *given: Any) -> Any:
    """Call a function of a stand-in, which some module may keep."""
    sizes = chain.from_iterable(x if isinstance(x, list | tuple) else (x,) for x in given)
    numbers = all(isinstance(size, int) for size in sizes)
    return (of_numbers if numbers else getattr(formulas.real(), name))(*given)
