"""``impl="auto"``: use the fastest measured implementation that has no objection, and log which it is.

This is for users who want attention without a study. A study names its implementations. ``ORDER`` ranks the
implementations by device and bias kind; the comments give the times behind the ranking.
"""

import logging

from operators import registry
from operators.spec import IMPLEMENTATIONS, KINDS, Request, Unsupported

_LOG = logging.getLogger(__name__)

_CPU = ("sdpa_flash", "sdpa_math", "reference")
_CPU_WINDOWS = ("gathered", *_CPU)
_DENSE = ("sdpa_cudnn", "sdpa_efficient", "sdpa_math")
_WINDOWS = ("rects", "sdpa_cudnn", "sdpa_efficient", "flex", "sdpa_math")

ORDER: dict[str, dict[str, tuple[str, ...]]] = {
    # One thread, at the mini's shapes (docs/operators.md, "And on a CPU").
    "cpu": {
        "none": _CPU,
        "global": ("lowrank", *_CPU),  # flash without a (Q, K) tensor
        "window": _CPU_WINDOWS,
        "dense": _CPU,
        "local": _CPU_WINDOWS,
    },
    # One H200, bf16, in ms at vov B1 Q900, forward and forward + backward (docs/operators.md).
    "cuda": {
        # B2 Q1500: flash 0.50 and 1.67, rects 0.55 and 2.12, cuDNN 1.09 and 3.1, sdpa_flash 1.17 and 3.56
        "none": ("flash", "rects", "sdpa_cudnn", "sdpa_flash", "sdpa_efficient", "sdpa_math"),
        "global": ("rects", "lowrank", *_DENSE),  # 0.32 and 1.5; lowrank 0.78 and 2.1
        "window": _WINDOWS,  # rects 0.22 and 0.87; cuDNN 1.16, no backward; efficient 3.4, 22; flex 5.6, 32
        "dense": _DENSE,  # cuDNN only where the bias needs no gradient
        "local": _WINDOWS,  # rects 0.05 and 0.17; cuDNN 1.25 and 2.6; efficient 3.5 and 22; flex 5.3 and 22
    },
}
"""Device -> bias kind -> implementations, fastest first. Objections remove candidates, so the table needs no
columns for gradients and dtypes. A kind that is not here has the order of ``window`` if it has windows, else
that of ``dense``."""

ORDER_OF_ONE_SAMPLE: dict[str, dict[str, tuple[str, ...]]] = {
    "cuda": {
        # B1: rects 0.19 and 0.71, sdpa_flash 0.31 and 1.15, flash 0.49 and 0.92
        "none": ("rects", "sdpa_flash", "flash", "sdpa_cudnn", "sdpa_efficient", "sdpa_math"),
    },
}
"""Entries that replace those of ``ORDER`` at batch size 1. The queries of one sample do not fill a GPU unless
the keys are split, and ``rects`` splits them."""


def pick(request: Request) -> str:
    """Return the fastest implementation without an objection, and log it at level INFO.

    Raises:
        Unsupported: every candidate objects; the message lists the objections of each.
    """
    refused = []
    for impl in _candidates(request):
        objections = registry.objections(impl, request)
        if not objections:
            _LOG.info("auto picks %s for %s", impl, request)
            return impl
        refused.append(f"{impl}: {', '.join(objections)}")
    raise Unsupported(f"auto finds nothing for {request}. {'; '.join(refused) or 'no table for this device'}")


def usable(request: Request) -> list[str]:
    """Return the implementations that can serve a request here, fastest first; ``reference`` comes last."""
    others = (impl for impl in IMPLEMENTATIONS if impl != "reference")
    known = dict.fromkeys((*(i for i in _candidates(request) if i != "reference"), *others, "reference"))
    return [impl for impl in known if not registry.objections(impl, request)]


def _candidates(request: Request) -> tuple[str, ...]:
    """Return the implementations to try, fastest first; empty for a device without a table."""
    by_kind = ORDER.get(request.device, {})
    if request.batch == 1:
        by_kind = by_kind | ORDER_OF_ONE_SAMPLE.get(request.device, {})
    alike = "window" if KINDS[request.kind].windowed else "dense"
    return by_kind.get(request.kind, by_kind.get(alike, ()))
