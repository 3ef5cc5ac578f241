"""Attention with a bias: one definition, many implementations. These are the public names.

A name is imported on its first use, so that ``operators.spec`` needs no torch, and an implementation loads no
kernel before it is called.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from operators.api import attention, objections
    from operators.bias import DenseBias, GlobalBias, NoBias
    from operators.forms import Bias, RectsForm
    from operators.grid import Segment, TokenGrid
    from operators.spec import BIAS_KINDS, IMPLEMENTATIONS, Form, Request, Unsupported
    from operators.window_bias import GaussianBias, LocalMask, WindowBias

_MODULES = {
    "operators.api": ("attention", "objections"),
    "operators.bias": ("DenseBias", "GlobalBias", "NoBias"),
    "operators.forms": ("Bias", "RectsForm"),
    "operators.grid": ("Segment", "TokenGrid"),
    "operators.window_bias": ("GaussianBias", "LocalMask", "WindowBias"),
    "operators.spec": ("BIAS_KINDS", "IMPLEMENTATIONS", "Form", "Request", "Unsupported"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

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
    """Import a public name on its first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value
