"""Effects shrunk by what their own spread says of them: empirical Bayes.

The best of several plans is best partly by chance, and its estimate is too high (the winner's curse). True
effects are taken as drawn around zero with a variance that is what the estimates spread beyond their noise
(Efron and Morris, JASA 70, 1975). Without such a spread nothing is left of them.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def shrink(effects: Array, covariance: Array) -> Array:
    """Return the expected true effects (terms,), given the estimates.

    Args:
        effects: (terms,) estimates.
        covariance: (terms, terms) theirs.
    """
    if not len(effects):
        return effects
    between = max(float(np.mean(effects**2 - np.diag(covariance))), 0.0)
    if between == 0:
        return np.zeros_like(effects)
    return np.asarray(between * np.linalg.solve(between * np.eye(len(effects)) + covariance, effects))
