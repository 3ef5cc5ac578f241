"""Gain minus price of every site, and what the squared error of the difference is made of."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.decision.levels import joint_quantile
from experiments.analysis.design_table import DesignTable
from experiments.analysis.model.fit import Fit
from experiments.analysis.price_model import Price
from experiments.recipes.decision_rule import DecisionRule

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Net:
    """Gain minus own price of every term, points.

    Attributes:
        value: (terms,) the difference.
        runs, scenes, timing: (terms,) what the noise of trainings, the choice of scenes and the noise of step
            times add to its squared error.
        df: (terms,) degrees of freedom of the error.
        price, price_low, price_high: (terms,) the price with its interval; all hold together.
    """

    value: Array
    runs: Array
    scenes: Array
    timing: Array
    df: Array
    price: Array
    price_low: Array
    price_high: Array

    @property
    def error(self) -> Array:
        """(terms,) standard errors."""
        return np.sqrt(self.runs + self.scenes + self.timing)


def net_of_sites(table: DesignTable, gain: Fit, price: Price, rule: DecisionRule) -> Net:
    """Take every site's own price off its gain; the fixed price is charged to no site.

    Args:
        table: the design; ``price`` has its terms.
        gain: effects on the rule's metric, points.
        price: growth of the logarithm of the step time.
        rule: gives points per per cent, confidence and looks.
    """
    sites = slice(1, 1 + len(table.terms))
    rate = rule.price_points_per_percent
    points, timing = rate * price.percent[sites], (rate * price.percent_error[sites]) ** 2
    side = joint_quantile(np.full(len(points), price.df), table, rule) * price.error[sites]
    return Net(
        gain.effect - points,
        gain.runs,
        gain.scenes,
        timing,
        welch_satterthwaite(gain.error**2, gain.df, timing, np.full(len(points), price.df)),
        points,
        100 * rate * np.expm1(price.effect[sites] - side),
        100 * rate * np.expm1(price.effect[sites] + side),
    )


def welch_satterthwaite(first: Array, first_df: Array, second: Array, second_df: Array) -> Array:
    """Return the degrees of freedom of the sum of two independent variances.

    Args:
        first: one variance.
        first_df: its degrees of freedom.
        second: the other.
        second_df: its degrees of freedom.
    """
    spread = first**2 / first_df + second**2 / second_df
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, (first + second) ** 2 / spread, np.minimum(first_df, second_df))
