"""What would settle a site: more runs, more scenes, or a better timed price.

The squared error of a net gain has these three parts, and each shrinks by means of its own: a hundred seeds
do not improve a price that is badly timed. The largest part is reduced first.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from experiments.analysis.decision.levels import equal_share
from experiments.analysis.decision.net_gain import Net
from experiments.analysis.design_table import DesignTable
from experiments.analysis.model.fit import Fit
from experiments.analysis.price_model import Price
from experiments.recipes.decision_rule import DecisionRule

POWER = 0.8
"""Probability that what is advised settles the site."""
RUNS, SCENES, PRICE = "runs", "scenes", "price"
MOST_FURTHER_SEEDS = 100
"""With more further seeds than this nobody is helped: the noise is too large to say."""

MOST_TIMES = 100
"""Likewise, times as many scenes, or rounds of the stopwatch."""


@dataclass(frozen=True)
class ToSettle:
    """What would settle a site with a probability of ``POWER``, all of it together.

    Attributes:
        largest: ``RUNS``, ``SCENES`` or ``PRICE``: the largest part of the squared error.
        seeds: further seeds, each run on every arm; 0: none are needed.
        scenes: how many times as many validation scenes; 1: these are enough.
        timing: how many times as many rounds of the stopwatch; 1: these are enough. If trials time the
            steps: how many times better the price must be timed, by a stopwatch.
        whatever: whether it is reckoned for the least favourable net gain, because the interval is wider
            than the margin, and the estimate says little.
    """

    largest: str
    seeds: int
    scenes: float
    timing: float
    whatever: bool

    @property
    def out_of_reach(self) -> bool:
        """Whether the noise is too large to say."""
        return self.seeds > MOST_FURTHER_SEEDS or max(self.scenes, self.timing) > MOST_TIMES


@dataclass(frozen=True)
class Effort:
    """What a study has spent so far.

    Attributes:
        table, rule: the study.
        gain: its fit.
        price: its price.
    """

    table: DesignTable
    rule: DecisionRule
    gain: Fit
    price: Price


def what_would_settle(index: int, net: Net, level: float, effort: Effort) -> ToSettle:
    """Return what would settle a term.

    A net gain of d is told from zero, or from the margin m, if d or m - |d| is ``quantile(level) +
    quantile(power)`` standard errors. The parts of the squared error that are larger than a bound are reduced
    to it; the bound is the largest that makes the sum small enough.

    Args:
        index: of the term.
        net: net gains.
        level: two-sided level at which the term's difference is tested.
        effort: the study so far.
    """
    rule, gain = effort.rule, effort.gain
    parts = {RUNS: net.runs[index], SCENES: net.scenes[index], PRICE: net.timing[index]}
    away = abs(net.value[index])
    same = equal_share(effort.table, rule)
    whatever = bool(-stdtrit(net.df[index], level / 2) * net.error[index] >= rule.equivalence_margin)
    seeds, factor = 0, 1.0
    bound = math.inf
    lost = gain.num_trials - gain.residual_df
    for _ in range(20):  # the degrees of freedom depend on the seeds, and both settle within a few steps
        df = max(net.df[index], gain.num_trials * factor - lost) if factor > 1 else net.df[index]
        differs = _error_for(away, level, df)
        equal = _error_for(rule.equivalence_margin - away, same, df)
        least = _error_for(rule.equivalence_margin / 2, min(level, same), df)
        bound = _bound(list(parts.values()), (least if whatever else max(differs, equal)) ** 2)
        factor = max(parts[RUNS] / bound, 1.0)
    seeds = math.ceil(len(effort.table.seeds) * (factor - 1) - 1e-9)
    return ToSettle(
        max(parts, key=lambda part: parts[part]),
        seeds,
        max(parts[SCENES] / bound, 1.0),
        max(parts[PRICE] / bound, 1.0),
        whatever,
    )


def _error_for(distance: float, level: float, df: float) -> float:
    """Return the standard error at which a distance is found with ``POWER``; 0 if it is none."""
    return max(distance, 0.0) / float(-stdtrit(df, level / 2) + stdtrit(df, POWER))


def _bound(parts: list[float], total: float) -> float:
    """Return the largest bound so that the parts, each cut off at it, add up to at most ``total``."""
    if sum(parts) <= total:
        return max(parts)
    left = total
    for count, part in zip(range(len(parts), 0, -1), sorted(parts), strict=True):
        if part >= left / count:
            return left / count
        left -= part
    return float(np.max(parts))
