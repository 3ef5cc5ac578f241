"""Attention with a bias: one meaning, many implementations.

The public face; importing it loads no kernel (those come with their first use).
"""

from operators.api import attention, objections
from operators.bias import DenseBias, GaussianBias, GlobalBias, LocalMask, NoBias, WindowBias
from operators.forms import Bias, RectsForm
from operators.grid import Segment, TokenGrid
from operators.spec import BIAS_KINDS, IMPLEMENTATIONS, Form, Request, Unsupported

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
