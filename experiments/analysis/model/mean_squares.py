"""The noise of a training by its source: shared by seed and site, the rest, lack of fit, pure error.

What a site gains may differ from seed to seed. The errors of the sites hold that variation in full, the
residuals of a model with a block per seed hold it diluted. The contrasts of seed by site show it undiluted,
but few of them exist. So both mean squares make the errors, in shares that the design fixes.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

Array = NDArray[np.float64]

WEIGHT_OF_REST = 1.5
"""Degrees of freedom that the mean square of the rest counts beside that of seed by site. More of them
find more, and err more often where gains differ from seed to seed (docs/log.md, 2026-11-29)."""
SINGULAR = 1e-8
"""A direction this much shorter than the longest is a rounding error."""


@dataclass(frozen=True)
class MeanSquares:
    """Mean squares with their degrees of freedom; one without any is NaN.

    Attributes:
        seed_by_site, seed_by_site_df: of the contrasts by which sites' effects differ between seeds.
        rest, rest_df: of all other residuals.
        lack_of_fit, lack_of_fit_df: of what arms have in common over the seeds beyond the model.
        pure_error, pure_error_df: of the residuals of a model with a term per arm and a block per seed.
    """

    seed_by_site: float
    seed_by_site_df: int
    rest: float
    rest_df: int
    lack_of_fit: float = math.nan
    lack_of_fit_df: int = 0
    pure_error: float = math.nan
    pure_error_df: int = 0

    @property
    def seed_by_site_f(self) -> tuple[float, float]:
        """F of seed by site against the rest, and its p-value; NaN if either has no degree of freedom."""
        return _f_test(self.seed_by_site, self.seed_by_site_df, self.rest, self.rest_df)

    @property
    def lack_of_fit_f(self) -> tuple[float, float]:
        """F of the lack of fit against pure error, and its p-value; NaN if either has none."""
        return _f_test(self.lack_of_fit, self.lack_of_fit_df, self.pure_error, self.pure_error_df)

    @property
    def pooled(self) -> float:
        """Mean square of all residuals: the squared noise of one trial."""
        squares = [(self.seed_by_site, self.seed_by_site_df), (self.rest, self.rest_df)]
        total = sum(mean * df for mean, df in squares if df)
        return total / (self.seed_by_site_df + self.rest_df)

    @property
    def of_sites(self) -> tuple[float, float]:
        """Mean square for the errors of the sites, and its degrees of freedom.

        With one seed it is that of the residuals: nothing tells what a second seed would change.
        """
        if not self.seed_by_site_df:
            return self.rest, float(self.rest_df)
        weight = min(WEIGHT_OF_REST, float(self.rest_df))
        df = self.seed_by_site_df + weight
        total = self.seed_by_site * self.seed_by_site_df + (self.rest * weight if weight else 0.0)
        return total / df, df


def split_noise(matrix: Array, seed_by_site: Array, arms: Array, values: Array) -> MeanSquares:
    """Split the residuals of a model by their source.

    Args:
        matrix: (trials, columns) the model, of full rank, seeds' blocks among its columns.
        seed_by_site: (trials, contrasts) products of seeds and sites.
        arms: (trials, arms) 1 where a trial is of an arm.
        values: (trials,) what was measured.
    """
    model = basis(matrix)
    left = values - model @ (model.T @ values)
    contrasts = basis(_beyond(seed_by_site, model))
    of_contrasts = float(((contrasts.T @ left) ** 2).sum())
    total, df = float((left**2).sum()), len(values) - model.shape[1]
    rest_df = df - contrasts.shape[1]
    lack = basis(_beyond(arms, model))
    of_lack = float(((lack.T @ left) ** 2).sum())
    return MeanSquares(
        *_mean(of_contrasts, contrasts.shape[1]),
        *_mean(max(total - of_contrasts, 0.0), rest_df),
        *_mean(of_lack, lack.shape[1]),
        *_mean(max(total - of_lack, 0.0), df - lack.shape[1]),
    )


def basis(columns: Array) -> Array:
    """Return (rows, rank) orthonormal columns that span the same space."""
    if not columns.size:
        return np.empty((len(columns), 0))
    left, lengths, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, lengths > SINGULAR * max(1.0, lengths[0])])


def _beyond(columns: Array, model: Array) -> Array:
    return np.asarray(columns - model @ (model.T @ columns))


def _mean(total: float, df: int) -> tuple[float, int]:
    return (total / df if df else math.nan), df


def _f_test(above: float, df_above: int, below: float, df_below: int) -> tuple[float, float]:
    if not (df_above and df_below and below > 0):
        return math.nan, math.nan
    ratio = above / below
    return ratio, float(fdtrc(df_above, df_below, ratio))
