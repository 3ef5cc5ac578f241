"""Attention with a bias: one meaning, many implementations.

The public face. A name is imported with its first use, so that ``operators.spec`` needs no torch and an
implementation loads no kernel before it is called.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from operators.api import attention, objections
    from operators.bias import DenseBias, GaussianBias, GlobalBias, LocalMask, NoBias, WindowBias
    from operators.forms import Bias, RectsForm
    from operators.grid import Segment, TokenGrid
    from operators.spec import BIAS_KINDS, IMPLEMENTATIONS, Form, Request, Unsupported

_MODULES = {
    "operators.api": ("attention", "objections"),
    "operators.bias": ("DenseBias", "GaussianBias", "GlobalBias", "LocalMask", "NoBias", "WindowBias"),
    "operators.forms": ("Bias", "RectsForm"),
    "operators.grid": ("Segment", "TokenGrid"),
    "operators.spec": ("BIAS_KINDS", "IMPLEMENTATIONS", "Form", "Request", "Unsupported"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BIAS_KINDS",
    "IMPLEMENTATIONS",
    "Bias",
    "DenseBias",
    "Form",
    "GaussianBias",
    "GlobalBias",
    "LocalMask",
    "NoBias",
    "RectsForm",
    "Request",
    "Segment",
    "TokenGrid",
    "Unsupported",
    "WindowBias",
    "attention",
    "objections",
]


def __getattr__(name: str) -> Any:
    """Import a public name with its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value
