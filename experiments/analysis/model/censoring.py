"""The effects on the final metric when some trials were stopped early: a regression in stages.

What stops a trial is its metric at an early step, which is known for all trials. Given that early value,
the unknown final metric is missing at random, so the likelihood factors (Anderson, JASA 52, 1957). The
early values are regressed on the design in all trials that reached them. The final metric is regressed on
the design and the early values in the trials that ended. To leave stopped trials out instead would make
bad arms look better than they are.

If every trial with a treatment was stopped, no row shows what the treatment does after the stop. The early
value is then taken to carry all of its effect, and the fit names the treatment.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.model.mean_squares import MeanSquares
from experiments.recipes.decision_rule import AnalysisError

Array = NDArray[np.float64]
Split = Callable[[Array, NDArray[np.bool_], Array], MeanSquares]
"""From columns (reached trials, kept) of full rank, the trials that reached the stage (trials,), and their
values (reached trials,) to the noise by source."""

ROUNDING = 1e-9
"""A column of which so little is its own follows from the others; rounding errors are far smaller."""


@dataclass(frozen=True)
class Stage:
    """A regression.

    Attributes:
        effect: (columns,) coefficients.
        covariance: (columns, columns) of the coefficients.
        df: degrees of freedom of the covariance.
        noise: standard deviation of one trial.
        squares: the noise by source, of the last stage.
        carried: columns whose effect after a stop is taken to be carried by the early value.
    """

    effect: Array
    covariance: Array
    df: float
    noise: float
    squares: MeanSquares
    carried: frozenset[int] = frozenset()


def residual_noise(columns: Array, reached: NDArray[np.bool_], values: Array) -> MeanSquares:
    """Return the mean square of the residuals, of one source; see ``Split``."""
    residuals = values - columns @ np.linalg.lstsq(columns, values, rcond=None)[0]
    df = int(reached.sum()) - columns.shape[1]
    return MeanSquares(math.nan, 0, float((residuals**2).sum()) / df, df)


def regress_stages(matrix: Array, stages: Sequence[Array], split: Split = residual_noise) -> Stage:
    """Regress the last of several measurements, of which ever fewer trials have the later ones.

    Args:
        matrix: (trials, columns) the design.
        stages: measurements from the earliest on, (trials,) each; NaN from a trial's stop on. Every trial
            has the first one.
        split: gives the noise of every stage by source.

    Returns:
        Coefficients of the design for the last measurement. They equal those of least squares after
        each unknown value has been replaced by its prediction; the covariance counts what that leaves open.

    Raises:
        AnalysisError: too few trials reached a stage to learn how it follows from the earlier ones.
    """
    columns = matrix.shape[1]
    coefficients: list[Array] = []  # per stage
    joint: Array = np.empty((0, 0))  # their covariance, stages one after another
    noise: Array = np.empty((0, 0))  # covariance of a trial's stages
    carried: set[int] = set()
    for index, values in enumerate(stages):
        reached = np.isfinite(values)
        wide = np.hstack([matrix[reached], *(earlier[reached, None] for earlier in stages[:index])])
        kept = _independent(wide)
        carried |= set(range(columns)) - set(kept)
        if (
            len(wide) - len(kept) < 1
            or not {*range(columns, wide.shape[1])} <= {*kept}
            or (carried and not index)
        ):
            raise AnalysisError(
                f"only {int(reached.sum())} of {len(matrix)} trials were trained to the end, too few "
                f"to judge the stopped ones by; run further seeds without early stopping"
            )
        inverse = np.zeros((wide.shape[1], len(wide)))
        inverse[kept] = np.linalg.pinv(wide[:, kept])
        fitted = inverse @ values[reached]
        squares = split(wide[:, kept], reached, values[reached])
        scale, df = squares.of_sites
        own, slopes = fitted[:columns], fitted[columns:]
        mix = np.hstack([np.eye(columns), *(earlier[:, None] for earlier in coefficients)])
        chain = np.kron(slopes, np.eye(columns)) if index else np.empty((columns, 0))
        across = chain @ joint
        variance = mix @ (scale * inverse @ inverse.T) @ mix.T + across @ chain.T
        coefficients.append(
            own
            + sum((s * earlier for s, earlier in zip(slopes, coefficients, strict=True)), np.zeros(columns))
        )
        joint = np.block([[joint, across.T], [across, variance]])
        along = noise @ slopes
        noise = np.block(
            [[noise, along[:, None]], [along[None, :], np.array([[squares.pooled + slopes @ along]])]]
        )
    covariance = joint[-columns:, -columns:]
    return Stage(coefficients[-1], covariance, df, math.sqrt(noise[-1, -1]), squares, frozenset(carried))


def _independent(wide: Array) -> list[int]:
    """Return columns that do not follow from one another, early values before blocks before sites."""
    kept: list[int] = []
    basis: Array = np.empty((len(wide), 0))
    for index in reversed(range(wide.shape[1])):
        column = wide[:, index]
        rest = column - basis @ (basis.T @ column)
        rest -= basis @ (basis.T @ rest)  # again: rounding errors of the first time
        length = float(np.linalg.norm(rest))
        if length > ROUNDING * max(float(np.linalg.norm(column)), 1.0):
            basis = np.column_stack([basis, rest / length])
            kept.append(index)
    return sorted(kept)
