"""How the error probability of a study is shared among its looks (interim analyses).

A study that is judged again and again until a verdict comes out draws false verdicts too often. Each look
therefore gets a part of the error probability: what a spending function allows by then, minus what earlier
looks have spent (Lan and DeMets, Biometrika 70, 1983). ``obrien_fleming`` spends little on early looks.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

GRID = 401
"""Points of the integration grid; 401 reproduce published boundaries to the fourth digit."""


def spent(level: float, information: float, spending: str) -> float:
    """Return how much of a two-sided error probability may be spent by then.

    Args:
        level: the whole error probability.
        information: share of the planned trials that has been seen, 0 to 1.
        spending: ``obrien_fleming`` or ``pocock``; formulas of Lan and DeMets, half for each side.
    """
    if information >= 1:
        return level
    if spending == "pocock":
        return level * math.log(1 + (math.e - 1) * information)
    return float(4 * ndtr(ndtri(level / 4) / math.sqrt(information)))


@lru_cache(maxsize=4096)
def nominal_level(level: float, looks: tuple[int, ...], look: int, spending: str) -> float:
    """Return the two-sided p-value below which a look rejects.

    Args:
        level: error probability over all looks.
        looks: seeds seen at each look, planned to the last.
        look: which look, from 1.
        spending: see ``spent``.

    Returns:
        The level of that look: ``level`` itself if there is only one look.
    """
    shares = [seeds / looks[-1] for seeds in looks[:look]]
    walk = _Walk()
    before, bound = 0.0, math.inf
    for share in shares:
        now = spent(level, share, spending)
        bound = walk.bound(share, now - before)
        before = now
    return float(2 * ndtr(-bound))


class _Walk:
    """The Brownian path of the score under no effect, as long as it has crossed no bound.

    Numerical integration as of Armitage, McPherson and Rowe (JRSS A 132, 1969).
    """

    def __init__(self) -> None:
        self._at: NDArray[np.float64] = np.zeros(1)
        self._mass: NDArray[np.float64] = np.ones(1)
        self._share = 0.0

    def bound(self, share: float, crossing: float) -> float:
        """Return the bound on |z| that is crossed now, and not before, with the given probability."""
        spread = math.sqrt(share - self._share)
        outside = self._outside(spread)
        root = math.sqrt(share)
        bound, beyond = 0.0, 40.0  # halved; to import scipy.optimize for its brentq takes far longer
        while bound < (middle := (bound + beyond) / 2) < beyond:
            bound, beyond = (middle, beyond) if outside(middle * root) > crossing else (bound, middle)
        edge = bound * root
        grid: NDArray[np.float64] = np.linspace(-edge, edge, GRID, dtype=np.float64)
        steps = (grid[:, None] - self._at) / spread
        density: NDArray[np.float64] = (
            np.exp(-(steps**2) / 2) @ self._mass / (math.sqrt(2 * math.pi) * spread)
        )
        weights = np.full(GRID, grid[1] - grid[0])
        weights[[0, -1]] /= 2  # the trapezoidal rule
        self._at, self._mass, self._share = grid, density * weights, share
        return bound

    def _outside(self, spread: float) -> Callable[[float], float]:
        def probability(edge: float) -> float:
            beyond = ndtr((self._at - edge) / spread) + ndtr((-edge - self._at) / spread)
            return float(beyond @ self._mass)

        return probability
