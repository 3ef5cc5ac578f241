"""Trainings that collapsed to a finite, useless value: found although several of them hide one another.

Two trials far below the others draw a least-squares fit towards them and enlarge its noise, so that neither
stands out. So a fit that few trials cannot draw (least absolute deviations) ranks the suspects, and each is
then tested against the trials that are no suspects: the generalised test of Rosner (Technometrics 25, 1983),
with studentised residuals in place of his deviates (Cook and Weisberg, Residuals and Influence, 1982).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from experiments.analysis.model.mean_squares import basis

Array = NDArray[np.float64]

COLLAPSED = 0.001
"""A trial has collapsed if the lowest of all would be as low by chance with less than this probability. It is
left out like a diverged one, and named. Normal noise costs a trial in one study of a thousand."""
MOST_COLLAPSED = 4
"""At most every fourth trial is suspected: of more, nobody can tell which are the failures."""
SUSPECT = 3.0
"""Residuals this many robust standard deviations below zero are tested; what collapsed is lower by far."""
SD_OF_MEDIAN = 1.4826
"""Standard deviation of normal noise per median of its absolute values."""
ROUNDS = 15
"""Of reweighting; the ranks of trials far off stand after a few."""
TINY = 1e-6
"""Residuals below this share of their mean weigh alike: a weight must be finite."""
FULL_LEVERAGE = 1e-9
"""A leverage this near to one leaves no residual to judge by; rounding errors are far smaller."""


def find_collapsed(values: Array, matrix: Array) -> list[int]:
    """Return the trials that collapsed, lowest first.

    Args:
        values: (trials,) measured; NaN for a trial without a number, which is never among them.
        matrix: (trials, columns) sites and blocks; may lack rank.
    """
    ended = np.flatnonzero(np.isfinite(values))
    columns = basis(matrix[ended])
    y = values[ended]
    most = min(len(y) // MOST_COLLAPSED, len(y) - columns.shape[1] - 1)
    if most < 1:
        return []
    residuals = least_absolute_residuals(y, columns)
    sizes = np.sort(np.abs(residuals))[columns.shape[1] :]  # as many fit exactly as there are columns
    low = -SUSPECT * SD_OF_MEDIAN * float(np.median(sizes))
    suspects = [int(i) for i in np.argsort(residuals, kind="stable")[:most] if residuals[i] < low]
    for count in range(len(suspects), 0, -1):
        clean = np.setdiff1d(np.arange(len(y)), suspects[:count])
        chances = [_chance(y, columns, clean, suspect) * (len(clean) + 1) for suspect in suspects[:count]]
        if chances[-1] < COLLAPSED:
            found = [s for s, chance in zip(suspects, chances, strict=False) if chance < COLLAPSED]
            return [int(ended[trial]) for trial in found]
    return []


def least_absolute_residuals(values: Array, columns: Array) -> Array:
    """Return the residuals (trials,) of a fit of least absolute deviations, by reweighted least squares.

    Args:
        values: (trials,).
        columns: (trials, rank) of full rank.
    """
    weights = np.ones(len(values))
    residuals = values
    for _ in range(ROUNDS):
        weighed = columns.T * weights
        residuals = values - columns @ np.linalg.solve(weighed @ columns, weighed @ values)
        sizes = np.abs(residuals)
        floor = TINY * float(sizes.mean())
        if not floor:
            break  # all trials fit exactly
        weights = 1 / np.maximum(sizes, floor)
    return np.asarray(residuals)


def _chance(values: Array, columns: Array, clean: NDArray[np.int64], trial: int) -> float:
    """Return the probability that a trial is so far below what others predict; 1 if they cannot."""
    both = np.append(clean, trial)
    model = basis(columns[both])
    df = len(clean) - model.shape[1]
    leverage = float((model[-1] ** 2).sum())
    if df < 1 or leverage > 1 - FULL_LEVERAGE:
        return 1.0
    residuals = values[both] - model @ (model.T @ values[both])
    own = residuals[-1] ** 2 / (1 - leverage)
    rest = max(float((residuals**2).sum()) - own, 0.0)  # what is left without the trial
    if residuals[-1] >= 0 or rest <= np.finfo(float).eps * own:
        return 1.0  # without any noise nothing tells how low is too low
    return float(stdtr(df, -np.sqrt(own * df / rest)))
