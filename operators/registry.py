"""The module of every implementation, and the forms of a bias that it takes.

An implementation is a module (or an object in a module) with

    objections(request) -> list[str]
    forward(q, k, v, *, scale, <field of the form>=...) -> (B, H, Q, D)

The field is absent for ``NONE``. It is ``bias`` (B, H or 1, Q, K) in q's dtype for ``DENSE``, ``u`` and ``w``
for ``FACTORS``, ``rects_form`` (``operators.forms.RectsForm``) for ``RECTS``, and ``score_mod`` for
``SCORE_MOD``.
The last axis of q, k and v is contiguous; their other axes may have any stride.
A module is imported on its first use. No implementation imports another.
"""

from importlib import import_module
from typing import NamedTuple, Protocol, cast

from torch import Tensor

from operators.spec import Form, Request, common_objections


class Implementation(Protocol):
    """The interface of an implementation."""

    def objections(self, request: Request) -> list[str]:
        """List why the implementation cannot serve ``request``; empty if it can."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Compute attention; the fields of the bias's form are further keyword arguments."""


class Entry(NamedTuple):
    """One line of the registry.

    Attributes:
        path: ``module`` or ``module:object``.
        forms: the forms that it takes, the preferred one first.
        shared_keys: bias kinds with which k and v may have one head for all heads of q.
    """

    path: str
    forms: tuple[Form, ...]
    shared_keys: tuple[str, ...] = ()


ENTRIES: dict[str, Entry] = {
    "reference": Entry("operators.impl.reference", (Form.NONE, Form.DENSE)),
    "sdpa_math": Entry("operators.impl.sdpa:MATH", (Form.NONE, Form.DENSE)),
    "sdpa_efficient": Entry("operators.impl.sdpa:EFFICIENT", (Form.NONE, Form.DENSE)),
    "sdpa_flash": Entry("operators.impl.sdpa:FLASH", (Form.NONE, Form.DENSE)),
    "sdpa_cudnn": Entry("operators.impl.sdpa:CUDNN", (Form.NONE, Form.DENSE)),
    "flash": Entry("operators.impl.flash", (Form.NONE,)),
    "lowrank": Entry("operators.impl.lowrank", (Form.FACTORS,)),
    "flex": Entry("operators.impl.flex", (Form.NONE, Form.SCORE_MOD)),
    "rects": Entry("operators.impl.rects", (Form.NONE, Form.RECTS)),
    "gathered": Entry("operators.impl.gathered", (Form.NONE, Form.RECTS), shared_keys=("local",)),
}


def entry(impl: str) -> Entry:
    """Return the registry's entry of an implementation.

    Raises:
        ValueError: the name is unknown.
    """
    if impl not in ENTRIES:
        raise ValueError(
            f"unknown implementation {impl!r}; expected one of {', '.join(ENTRIES)}, or auto in a call"
        )
    return ENTRIES[impl]


_LOADED: dict[str, Implementation] = {}


def load(impl: str) -> Implementation:
    """Import an implementation, if that has not happened yet, and return it.

    Raises:
        ValueError: the name is unknown.
    """
    if impl not in _LOADED:
        module, _, attribute = entry(impl).path.partition(":")
        loaded = import_module(module)
        _LOADED[impl] = cast(Implementation, getattr(loaded, attribute) if attribute else loaded)
    return _LOADED[impl]


def objections(impl: str, request: Request) -> list[str]:
    """List all reasons why ``impl`` cannot serve ``request``; empty if it can.

    Args:
        impl: one of ``operators.spec.IMPLEMENTATIONS``.
        request: the call.

    Raises:
        ValueError: the name is unknown.
    """
    found = entry(impl)
    reasons = common_objections(request, found.forms) + load(impl).objections(request)
    if request.shared_keys and request.kind not in found.shared_keys:
        reasons.append(f"takes a head of keys for every head of q with the {request.kind} bias, got 1")
    return reasons
