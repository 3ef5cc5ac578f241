"""Building and running modules on the meta device, where a tensor has a shape and no values."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

KEEP_SHAPE = {nn.init.normal_, Tensor.normal_, nn.functional.batch_norm}
"""Functions that change values only. On meta tensors they are slow, and PyTorch loads sympy for them."""


@contextmanager
def meta_device() -> Iterator[None]:
    """Make the meta device the default, without loading TorchDynamo, and without sympy to build a module.

    To run one still loads sympy: a convolution of meta tensors checks its sizes, which might be formulas.
    """
    with _without_dynamo(), torch.device("meta"), _ValuesLeftOut():
        yield


class _ValuesLeftOut(TorchFunctionMode):
    """Leaves out what computes values only."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of PyTorch, or return its first argument; a new tensor gets no random numbers."""
        if func in KEEP_SHAPE:
            return next(iter((*args, *(kwargs or {}).values())))
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


@contextmanager
def _without_dynamo() -> Iterator[None]:
    """Keep PyTorch from loading TorchDynamo.

    Operations on meta tensors are Python functions that PyTorch marks for TorchDynamo at their first call. To
    mark them it imports ``torch._dynamo``, which takes a second of CPU and does nothing where nothing is
    compiled. Here the mark is left out, and is made by the first call elsewhere.
    """
    if "torch._dynamo" in sys.modules:
        yield
        return
    stand_in, unmarked = ModuleType("torch._dynamo"), []

    def disable(function: Callable[..., Any], recursive: bool, wrapping: bool) -> Callable[..., Any]:
        unmarked.append(function)
        return function

    stand_in.disable = disable  # type: ignore[attr-defined]
    sys.modules["torch._dynamo"] = stand_in
    torch.__dict__["_dynamo"] = stand_in
    try:
        yield
    finally:
        del sys.modules["torch._dynamo"], torch.__dict__["_dynamo"]
        for function in unmarked:
            function.__dict__.pop("__dynamo_disable", None)
