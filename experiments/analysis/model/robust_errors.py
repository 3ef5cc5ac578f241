"""Errors of effects whose arms are unequally many, without the assumption that all arms are equally noisy.

Where half of the trials have a treatment, a noisier arm enlarges all errors alike, and one noise for all is
right. One at a time, a treatment is compared by its own few trials. Then its own residuals count (HC2:
MacKinnon and White, J. Econometrics 29, 1985), with Student's degrees of freedom of Bell and McCaffrey
(Survey Methodology 28, 2002; Imbens and Kolesár, Rev. Econ. Stat. 98, 2016). With two arms this is Welch's t.
"""

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.design_table import DesignTable

Array = NDArray[np.float64]

UNBALANCED = 2.0
"""Arms are unbalanced if a treatment has this many times fewer, or more, arms than its site's baseline."""
FULL_LEVERAGE = 1e-9
"""A leverage this near to one leaves no residual to judge by; rounding errors are far smaller."""


def unbalanced(table: DesignTable) -> bool:
    """Return whether some treatment is compared by unequally many arms, as in one at a time."""
    arms = sorted({trial.levels for trial in table.trials})
    where = {site: index for index, site in enumerate(table.sites)}
    for site, level in table.terms:
        at_site = [arm[where[site]] for arm in arms]
        few, many = sorted((at_site.count(level), at_site.count(table.baseline)))
        if many >= UNBALANCED * few:
            return True
    return False


def robust_covariance(matrix: Array, values: Array) -> tuple[Array, Array] | None:
    """Return the covariance of least squares, and the degrees of freedom of every coefficient's error.

    None if a trial alone decides a coefficient: its residual is zero and tells nothing about its noise.

    Args:
        matrix: (trials, columns) of full rank.
        values: (trials,) what was measured.
    """
    inverse = np.linalg.pinv(matrix)
    hat = matrix @ inverse
    own = np.eye(len(matrix)) - hat
    share = np.diag(own)
    if share.min() < FULL_LEVERAGE:
        return None
    grown = 1 / np.sqrt(share)
    residuals = own @ values * grown
    covariance = (inverse * residuals**2) @ inverse.T
    df = np.empty(len(inverse))
    for index, weights in enumerate(inverse):
        # the squared error is a quadratic form in the noise; mean and variance of it give the df
        form = own * (weights * grown)
        inner = form.T @ form
        df[index] = np.trace(inner) ** 2 / float((inner**2).sum())
    return np.asarray(covariance), df
