"""``impl="auto"``: the fastest measured implementation that has no objection, and it says which.

For users who want attention and no study; a study names its implementations. The order is a small table
per device, bias kind and whether gradients are needed; where its rows come from stands beside it.
"""

import logging

from operators import registry
from operators.spec import Request, Unsupported

_LOG = logging.getLogger(__name__)

_CPU = ("sdpa_flash", "sdpa_math", "reference")

ORDER: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {
        "none": _CPU,
        "global": ("lowrank", *_CPU),
        "window": _CPU,
        "gaussian": _CPU,
        "dense": _CPU,
        "local": _CPU,
    },
    "cuda": {
        "none": ("flash", "rects", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "sdpa_math"),
        "global": ("rects", "lowrank", "sdpa_cudnn", "sdpa_efficient", "sdpa_math"),
        "window": ("rects", "flex", "sdpa_cudnn", "sdpa_efficient", "sdpa_math"),
        "gaussian": ("rects", "flex", "sdpa_cudnn", "sdpa_efficient", "sdpa_math"),
        "dense": ("sdpa_cudnn", "sdpa_efficient", "sdpa_math"),
        "local": ("rects", "flex", "sdpa_cudnn", "sdpa_efficient", "sdpa_math"),
    },
}
"""Device, bias kind -> implementations, fastest first. An objection takes one out, so gradients and dtypes
need no columns of their own."""


def pick(request: Request) -> str:
    """Return the fastest implementation without an objection, and log which it is.

    Raises:
        Unsupported: all object; lists what each said.
    """
    found = {}
    for impl in ORDER.get(request.device, {}).get(request.kind, ()):
        found[impl] = registry.objections(impl, request)
        if not found[impl]:
            _LOG.info("auto picks %s for %s", impl, request)
            return impl
    reasons = "; ".join(f"{impl}: {', '.join(said)}" for impl, said in found.items())
    raise Unsupported(f"auto finds nothing for {request}. {reasons or 'no table for this device'}")
