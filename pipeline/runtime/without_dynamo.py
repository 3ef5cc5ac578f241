"""Keeps PyTorch from loading TorchDynamo where nothing is compiled."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch


@contextmanager
def without_dynamo() -> Iterator[None]:
    """Within the context, keep PyTorch from loading TorchDynamo.

    PyTorch marks some Python functions for TorchDynamo at their first call: operations on meta tensors, and
    what makes an optimiser. An optimiser's step says where a compiled graph must break. For that it imports
    ``torch._dynamo``, which takes a second of CPU and does nothing where nothing is compiled. Here marks are
    left out, and are made by the first call elsewhere. Once TorchDynamo is loaded this does nothing.
    """
    if "torch._dynamo" in sys.modules:
        yield
        return
    stand_in, unmarked = ModuleType("torch._dynamo"), []

    def disable(function: Callable[..., Any], recursive: bool, wrapping: bool) -> Callable[..., Any]:
        unmarked.append(function)
        return function

    stand_in.disable = disable  # type: ignore[attr-defined]
    stand_in.graph_break = lambda: None  # type: ignore[attr-defined]
    sys.modules["torch._dynamo"] = stand_in
    torch.__dict__["_dynamo"] = stand_in
    try:
        yield
    finally:
        del sys.modules["torch._dynamo"], torch.__dict__["_dynamo"]
        for function in unmarked:
            function.__dict__.pop("__dynamo_disable", None)
