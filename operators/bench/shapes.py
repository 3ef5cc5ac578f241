"""The shapes at which the operator benchmark measures."""

from collections.abc import Iterator
from dataclasses import replace

from operators.testing.cases import Sizes

_R50 = Sizes(1, 8, 900, 32, bev=(128, 128), cameras=(6, 20, 50), window=(8, 8), placement="around")
_VOV = Sizes(1, 8, 900, 32, bev=(180, 180), cameras=(6, 40, 100), window=(15, 15), placement="around")

REAL = {
    f"{name} B{batch} Q{queries}": replace(sizes, batch=batch, queries=queries)
    for name, sizes in (("r50", _R50), ("vov", _VOV))
    for batch, queries in ((1, 900), (2, 1500), (1, 1730))  # inference; training; one sample with denoising
}
"""The cross-attention of the decoder in the two published configs of CMT-AQR."""

_MASK_WINDOW = 5  # cells on the BEV map: the window of the published local mask, at any window of the bias


def for_kind(sizes: Sizes, kind: str) -> Sizes:
    """Return the sizes with the windows that the published model has for a bias kind."""
    if kind != "local":
        return sizes
    return replace(sizes, window=(min(_MASK_WINDOW, sizes.window[0]), sizes.window[1]))


MINI = {
    "mini B1 Q40": Sizes(1, 2, 40, 16, bev=(12, 12), cameras=(2, 4, 6), window=(3, 3), placement="around")
}
"""A smoke test for machines without a GPU. Its times mean nothing."""

_MINI = Sizes(2, 2, 240, 48, bev=(32, 32), cameras=(6, 12, 30), window=(3, 5), placement="around")

CPU = {"mini B2 Q240": _MINI, "r50 B1 H1 Q900": replace(_R50, heads=1, window=(5, 8))}
"""The cross-attention of the mini in a training step, with denoising, and one of the eight heads of r50."""

_BEV_SIDES = (60, 100, 150, 220, 310, 400, 500)  # cells; with the cameras this gives 5k to 400k keys
_QUERIES = (100, 250, 500, 1000, 2000, 3000, 4000)


def growing() -> Iterator[tuple[str, Sizes]]:
    """Yield (suite, sizes): keys and queries doubled twice, then more keys, then more queries."""
    for factor in (1, 2, 4):  # first, because it is short and an interrupted run keeps its rows
        cameras = (6, 20, 25 * factor)
        yield "memory", replace(_R50, queries=450 * factor, bev=(128, 64 * factor), cameras=cameras)
    for side in _BEV_SIDES:
        yield "keys", replace(_VOV, bev=(side, side), cameras=(6, side // 5, side // 2), window=(15, 15))
    for queries in _QUERIES:
        yield "queries", replace(_R50, queries=queries)
