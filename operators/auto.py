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
_WINDOWS = ("rects", "sdpa_cudnn", "sdpa_efficient", "flex", "sdpa_math")

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
        # B1: rects 0.19 and 0.71, sdpa_flash 0.31 and 1.15, flash 0.49 and 0.92. It splits the keys.
        "none alone": ("rects", "sdpa_flash", "flash", "sdpa_cudnn", "sdpa_efficient", "sdpa_math"),
        # B2 Q1500: flash 0.50 and 1.67, rects 0.55 and 2.12, cuDNN 1.09 and 3.1, sdpa_flash 1.17 and 3.56
        "none": ("flash", "rects", "sdpa_cudnn", "sdpa_flash", "sdpa_efficient", "sdpa_math"),
        "global": ("rects", "lowrank", *_DENSE),  # 0.32 and 1.5; lowrank 0.78 and 2.1
        "window": _WINDOWS,  # rects 0.22 and 0.87; cuDNN 1.16, refused; efficient 3.4 and 22; flex 5.6 and 32
        "gaussian": _WINDOWS,
        "dense": _DENSE,  # as refused: cuDNN gives the bias no gradient
        "local": _WINDOWS,  # rects 0.05 and 0.17; cuDNN 1.25 and 2.6; efficient 3.5 and 22; flex 5.3 and 22
    },
}
"""Device, bias kind -> implementations, fastest first. An objection takes one out, so gradients and dtypes
need no columns of their own. ``none alone``: one sample, whose queries do not fill a GPU
unless the keys are split."""


def pick(request: Request) -> str:
    """Return the fastest implementation without an objection, and log which it is.

    Raises:
        Unsupported: all object; lists what each said.
    """
    found = {}
    columns = ORDER.get(request.device, {})
    alone = f"{request.kind} alone"
    column = alone if request.batch == 1 and alone in columns else request.kind
    for impl in columns.get(column, ()):
        found[impl] = registry.objections(impl, request)
        if not found[impl]:
            _LOG.info("auto picks %s for %s", impl, request)
            return impl
    reasons = "; ".join(f"{impl}: {', '.join(said)}" for impl, said in found.items())
    raise Unsupported(f"auto finds nothing for {request}. {reasons or 'no table for this device'}")
