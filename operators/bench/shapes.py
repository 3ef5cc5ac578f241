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

_MASK_REACH = 5  # cells on the BEV map: the published local mask's, whatever the bias has


def for_kind(sizes: Sizes, kind: str) -> Sizes:
    """Return the sizes with the windows that the published model has for a bias kind."""
    return (
        replace(sizes, window=(min(_MASK_REACH, sizes.window[0]), sizes.window[1]))
        if kind == "local"
        else sizes
    )


MINI = {
    "mini B1 Q40": Sizes(1, 2, 40, 16, bev=(12, 12), cameras=(2, 4, 6), window=(3, 3), placement="around")
}
"""For a machine without a GPU: shows that everything runs, and says nothing of speed."""

_BEV_SIDES = (60, 100, 150, 220, 310, 400, 500)  # cells; with cameras 5k to 400k keys
_QUERIES = (100, 250, 500, 1000, 2000, 3000, 4000)


def growing() -> Iterator[tuple[str, Sizes]]:
    """Yield (suite, sizes): both doubled twice, more keys, more queries."""
    for factor in (1, 2, 4):  # first, because it is short, and a run that is stopped keeps what it has
        cameras = (6, 20, 25 * factor)
        yield "memory", replace(_R50, queries=450 * factor, bev=(128, 64 * factor), cameras=cameras)
    for side in _BEV_SIDES:
        yield "keys", replace(_VOV, bev=(side, side), cameras=(6, side // 5, side // 2), window=(15, 15))
    for queries in _QUERIES:
        yield "queries", replace(_R50, queries=queries)
