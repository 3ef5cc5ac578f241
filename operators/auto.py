"""``impl="auto"``: the fastest measured implementation that has no objection, and it says which.

For users who want attention and no study; a study names its implementations. The order is a small table
per device, bias kind and whether gradients are needed; where its rows come from stands beside it.
"""

import logging

from operators import registry
from operators.spec import Request, Unsupported

_LOG = logging.getLogger(__name__)

_CPU = ("sdpa_flash", "sdpa_math", "reference")
_DENSE = ("sdpa_cudnn", "sdpa_efficient", "sdpa_math")
_WINDOWS = ("rects", "sdpa_cudnn", "flex", "sdpa_efficient", "sdpa_math")

ORDER: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {
        "none": _CPU,
        "global": ("lowrank", *_CPU),  # flash without a (Q, K) tensor
        "window": _CPU,
        "gaussian": _CPU,
        "dense": _CPU,
        "local": _CPU,
    },
    # One H200, bf16, in ms at vov B1 Q900, forward and forward + backward (docs/operators.md).
    "cuda": {
        "none": ("flash", "sdpa_flash", "sdpa_cudnn", "rects", "sdpa_efficient", "sdpa_math"),
        "global": ("lowrank", "rects", *_DENSE),  # 0.78 and 2.1; rects 1.04 and 2.9
        "window": _WINDOWS,  # rects 0.45 and 2.7; cuDNN 1.16, refused; flex 1.73; efficient 3.4 and 22
        "gaussian": _WINDOWS,
        "dense": _DENSE,  # as refused: cuDNN gives the bias no gradient
        "local": _WINDOWS,  # rects 0.76 and 2.1; cuDNN 1.25 and 2.6; efficient 3.5 and 22
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
