"""Where every implementation lives, and which forms of a bias it takes.

An implementation is a module (or an object in one) with

    objections(request) -> list[str]
    forward(q, k, v, *, scale, <field of the form>=...) -> (B, H, Q, D)

where the field is absent for ``NONE``, ``bias`` (B, H or 1, Q, K) in q's dtype for ``DENSE``, ``u`` and ``w``
for ``FACTORS``, ``rects`` (``operators.bias.RectsForm``) for ``RECTS``, ``score_mod`` for ``SCORE_MOD``.
The last axis of q, k and v is contiguous; their other axes may have any stride.
It is imported on its first use; none knows another.
"""

from importlib import import_module
from typing import NamedTuple, Protocol, cast

from torch import Tensor

from operators.spec import Form, Request, common_objections


class Implementation(Protocol):
    """What an implementation offers."""

    def objections(self, request: Request) -> list[str]:
        """List why it cannot serve ``request``; empty means it can."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Attend; with a bias, its form's field comes as one more keyword."""


class Entry(NamedTuple):
    """Where an implementation is found, and what is known of it.

    Attributes:
        path: module, or module:object.
        forms: those it takes, its favourite first.
    """

    path: str
    forms: tuple[Form, ...]


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
}


def entry(impl: str) -> Entry:
    """Look an implementation's entry up.

    Raises:
        ValueError: the name is unknown.
    """
    if impl not in ENTRIES:
        raise ValueError(f"unknown implementation {impl!r}; expected one of {', '.join(ENTRIES)}")
    return ENTRIES[impl]


_LOADED: dict[str, Implementation] = {}


def load(impl: str) -> Implementation:
    """Return an implementation by name, imported."""
    if impl not in _LOADED:
        module, _, attribute = entry(impl).path.partition(":")
        loaded = import_module(module)
        _LOADED[impl] = cast(Implementation, getattr(loaded, attribute) if attribute else loaded)
    return _LOADED[impl]


def objections(impl: str, request: Request) -> list[str]:
    """List every reason why ``impl`` cannot serve ``request`` as asked; empty means it can.

    Args:
        impl: one of ``operators.spec.IMPLEMENTATIONS``.
        request: the call.
    """
    return common_objections(request, entry(impl).forms) + load(impl).objections(request)
