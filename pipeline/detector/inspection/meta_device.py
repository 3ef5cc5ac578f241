"""Building and running modules on the meta device, where a tensor has a shape and no values."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch


@contextmanager
def meta_device() -> Iterator[None]:
    """Make the meta device the default, without loading TorchDynamo.

    Operations on meta tensors are Python functions that PyTorch marks for TorchDynamo at their first call. To
    mark them it imports ``torch._dynamo``, which takes a second of CPU and does nothing where nothing is
    compiled. Here the mark is left out, and is made by the first call elsewhere.
    """
    if "torch._dynamo" in sys.modules:
        with torch.device("meta"):
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
        with torch.device("meta"):
            yield
    finally:
        del sys.modules["torch._dynamo"], torch.__dict__["_dynamo"]
        for function in unmarked:
            function.__dict__.pop("__dynamo_disable", None)
