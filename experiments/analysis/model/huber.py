"""Huber's regression with a block per round, and its covariance by leaving out rounds.

Visits of a round share what the machine did meanwhile, so the rounds are the independent units, not the
visits. The covariance is a jackknife over them (clusters: MacKinnon, Nielsen and Webb, J. Appl. Econometrics
38, 2023).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Array = NDArray[np.float64]

TUNING = 1.345
"""Huber's constant: 95 % of the efficiency of least squares under normal noise (Huber 1964)."""
MOST_ITERATIONS = 200
CONVERGED = 1e-10
"""Largest change of a coefficient at which the iteration ends; the responses are logarithms of times."""


@dataclass(frozen=True)
class RobustFit:
    """What Huber's regression found.

    Attributes:
        effect: (columns,) coefficients.
        covariance: (columns, columns) theirs, by rounds.
        noise: standard deviation of one response, what a round shares taken out.
    """

    effect: Array
    covariance: Array
    noise: float


def fit_huber(matrix: Array, response: Array, rounds: NDArray[np.int64]) -> RobustFit:
    """Fit ``response ~ block per round + matrix``.

    The scale is the median absolute residual, enlarged for the coefficients and blocks that were fitted. If
    these are half of the visits or more, the fit may go through most visits, and the median says nothing of
    the others. Then no visit counts as an outlier, and the fit is that of least squares.

    Args:
        matrix: (visits, columns) of full rank within rounds.
        response: (visits,) what is explained.
        rounds: (visits,) index of the round, from 0 without gaps.
    """
    num_fitted = matrix.shape[1] + rounds.max() + 1
    num_free = len(matrix) - num_fitted
    enlarged = math.sqrt(len(matrix) / max(num_free, 1)) / ndtri(0.75)
    weights = np.ones(len(matrix))
    effect = np.zeros(matrix.shape[1])
    for _ in range(MOST_ITERATIONS):
        inner, outer = within_rounds(matrix, rounds, weights), within_rounds(response, rounds, weights)
        root = np.sqrt(weights)
        before = effect
        effect = np.linalg.lstsq(inner * root[:, None], outer * root, rcond=None)[0]
        residuals = outer - inner @ effect
        scale = float(enlarged * np.median(np.abs(residuals)))
        edge = TUNING * scale if scale > 0 and num_free > num_fitted else math.inf
        if edge == math.inf or np.abs(effect - before).max() < CONVERGED:
            break
        weights = np.minimum(1.0, edge / np.maximum(np.abs(residuals), CONVERGED * edge))
    moved = _without_each_round(matrix, residuals, edge, rounds)
    spread = moved - moved.mean(axis=0)
    return RobustFit(effect, (len(moved) - 1) / len(moved) * spread.T @ spread, scale)


def within_rounds(values: Array, rounds: NDArray[np.int64], weights: Array | None = None) -> Array:
    """Take the rounds' weighted means off: the blocks of the model (Frisch, Waugh and Lovell).

    Args:
        values: (visits,) or (visits, columns).
        rounds: (visits,) index of the round.
        weights: (visits,) 0 or more; None: equal.
    """
    weights = np.ones(len(rounds)) if weights is None else weights
    columns = values.reshape(len(values), -1)
    total = np.bincount(rounds, weights)
    sums = np.stack([np.bincount(rounds, weights * column) for column in columns.T], axis=1)
    means = sums / np.where(total > 0, total, 1.0)[:, None]
    return np.asarray((columns - means[rounds]).reshape(values.shape))


def _without_each_round(matrix: Array, residuals: Array, edge: float, rounds: NDArray[np.int64]) -> Array:
    """Return (rounds, columns): by how much the coefficients move if a round is left out.

    One Newton step from the solution: without the round the score is minus that of the round, and the slope
    lacks the round's. For least squares (no residual beyond the edge) that is exact.
    """
    inside = (np.abs(residuals) <= edge).astype(float)
    inner = within_rounds(matrix, rounds, inside)
    order = np.argsort(rounds, kind="stable")
    starts = np.searchsorted(rounds[order], np.arange(rounds.max() + 1))
    products = (inside[:, None] * inner)[order, :, None] * inner[order, None, :]
    slopes = np.add.reduceat(products, starts, axis=0)
    scores = np.add.reduceat((np.clip(residuals, -edge, edge)[:, None] * matrix)[order], starts, axis=0)
    inverses = np.linalg.pinv(slopes.sum(axis=0) - slopes, hermitian=True)
    return np.asarray(-np.einsum("rij,rj->ri", inverses, scores))
