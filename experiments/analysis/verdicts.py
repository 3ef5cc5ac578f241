"""Gains weighed against prices by the rule, over all sites and looks together.

Real and simulated studies end in ``judge``. Errors are controlled twice, separately: the verdicts of a
study are all right together (weighted Holm, each step with its level spent over the looks), and the
intervals of the gains all hold together (Bonferroni, spent alike). Holm settles more than Bonferroni, but
no intervals of a bounded length agree with it, so each claim has its own procedure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from experiments.analysis.alpha_spending import nominal_level, spent
from experiments.analysis.design_table import DesignTable
from experiments.analysis.model.fit import Fit
from experiments.recipes.decision_rule import SCREENING, DecisionRule, ScreeningMissing

Array = NDArray[np.float64]

PAYS, COSTS, UNDECIDED = "PAYS", "COSTS", "UNDECIDED"
MOST_FURTHER_SEEDS = 100
"""If more further seeds than this are needed, the effect is called too small to settle."""


@dataclass(frozen=True)
class Verdict:
    """The answer for one site (and one treatment, if the rule names several).

    Attributes:
        site: the attention site.
        verdict: ``PAYS``, ``COSTS`` or ``UNDECIDED``.
        effect, low, high: gain in the rule's metric, points; all sites' intervals hold together, at every
            look, with the rule's confidence.
        slowdown_percent: growth of the step time.
        price, price_low, price_high: what that slow-down must earn, with its interval, points.
        net, net_low, net_high: gain minus price; its interval counts the noise of both, at the level at
            which Holm's procedure tests this site. PAYS is ``net_low > 0``, COSTS is ``net_high < 0``.
        further_trials: for what is not settled: further trials of every arm (further seeds) that would
            settle it if gain, price and noise stay as estimated; None if over ``MOST_FURTHER_SEEDS``.
            0 if it is settled.
        treatment: the level that is compared with the baseline.
        equivalent: whether the net gain is certainly within the rule's margin of zero (two one-sided
            tests).
        p_value: two-sided, of no net gain; not adjusted.
        tested_at: the two-sided level it was tested at, after Holm and the spending over looks.
    """

    site: str
    verdict: str
    effect: float
    low: float
    high: float
    slowdown_percent: float
    price: float
    price_low: float
    price_high: float
    net: float
    net_low: float
    net_high: float
    further_trials: int | None
    treatment: str = ""
    equivalent: bool = False
    p_value: float = math.nan
    tested_at: float = math.nan

    @property
    def settled(self) -> bool:
        """Whether more trials are of no use: it pays, costs, or is equivalent to no difference."""
        return self.verdict != UNDECIDED or self.equivalent


@dataclass(frozen=True)
class Net:
    """Gain minus price of every term, points.

    Attributes:
        value: (terms,) the difference.
        error: (terms,) its standard error.
        df: (terms,) degrees of freedom of the error.
        price, price_low, price_high: (terms,) the price with its interval.
    """

    value: Array
    error: Array
    df: Array
    price: Array
    price_low: Array
    price_high: Array


def judge(table: DesignTable, gain: Fit, slowdown: Fit, rule: DecisionRule) -> tuple[Verdict, ...]:
    """Weigh gains against prices.

    Args:
        table: the design, with the look that was reached.
        gain: effects on the rule's metric, points.
        slowdown: effects on the logarithm of the step time.
        rule: the rule.

    Raises:
        ScreeningMissing: the rule takes its order from a screening, and it is not filled in.
    """
    if rule.order_by == SCREENING:
        raise ScreeningMissing(
            "the rule tests the layers in the order of the study's screening, and there is none; run "
            "`biaswise study screen` with the study's recipe, then `biaswise study resume`"
        )
    net = _net(table, gain, slowdown, rule)
    tested_at, p_values = _test_difference(net, table, rule)
    same = _test_equivalence(net, table, rule)
    reach = -stdtrit(net.df, tested_at / 2) * net.error
    wide = joint_quantile(gain.df, table, rule) * gain.error
    verdicts = []
    for i, (site, treatment) in enumerate(table.terms):
        low, high = float(net.value[i] - reach[i]), float(net.value[i] + reach[i])
        verdict = PAYS if low > 0 else COSTS if high < 0 else UNDECIDED
        settled = verdict != UNDECIDED or bool(same[i])
        verdicts.append(
            Verdict(
                site=site,
                verdict=verdict,
                effect=float(gain.effect[i]),
                low=float(gain.effect[i] - wide[i]),
                high=float(gain.effect[i] + wide[i]),
                slowdown_percent=float(100 * np.expm1(slowdown.effect[i])),
                price=float(net.price[i]),
                price_low=float(net.price_low[i]),
                price_high=float(net.price_high[i]),
                net=float(net.value[i]),
                net_low=low,
                net_high=high,
                further_trials=0 if settled else _further(i, net, float(tested_at[i]), gain, table, rule),
                treatment=treatment,
                equivalent=bool(same[i]),
                p_value=float(p_values[i]),
                tested_at=float(tested_at[i]),
            )
        )
    return tuple(verdicts)


def joint_quantile(df: Array, table: DesignTable, rule: DecisionRule) -> Array:
    """Return Student's quantiles (terms,) at which all terms' intervals hold together, at every look."""
    level = _at_look((1 - rule.confidence) / len(table.terms), table, rule)
    return np.asarray(-stdtrit(df, level / 2))


def single_quantile(df: Array, table: DesignTable, rule: DecisionRule) -> Array:
    """Return Student's quantiles (terms,) at which one interval by itself holds, at every look."""
    return np.asarray(-stdtrit(df, _at_look(1 - rule.confidence, table, rule) / 2))


def shares_spent(interim_analyses: Sequence[int], taken: int, rule: DecisionRule) -> float:
    """Return the share of the error probability that the looks taken have spent, 0 to 1.

    Args:
        interim_analyses: numbers of seeds of all planned looks.
        taken: how many of them were taken.
        rule: its confidence and spending.
    """
    level = 1 - rule.confidence
    return (
        spent(level, interim_analyses[taken - 1] / interim_analyses[-1], rule.alpha_spending) / level
        if taken
        else 0.0
    )


def holm(p_values: Array, weights: Array, level: float, table: DesignTable, rule: DecisionRule) -> Array:
    """Return the level at which weighted Holm tests each p-value at this look.

    A p-value is rejected if it is at most its level. The smallest ``p / weight`` is tested first, at its
    share of the level among all; each rejection leaves its share to the others (Holm, Scand. J. Stat. 6,
    1979; with looks: Ye, Li, Liu and Yao, Stat. Med. 32, 2013).

    Args:
        p_values: (terms,) p-values.
        weights: (terms,) positive; equal ones give Holm's procedure.
        level: error probability over all terms and looks.
        table: gives the look.
        rule: gives the spending.
    """
    levels = np.empty(len(p_values))
    left = np.argsort(p_values / weights, kind="stable")
    while len(left):
        shares = weights[left] / weights[left].sum()
        at = [_at_look(level * float(share), table, rule) for share in shares]
        levels[left] = at
        if p_values[left[0]] > at[0]:
            break
        left = left[1:]
    return levels


def _at_look(level: float, table: DesignTable, rule: DecisionRule) -> float:
    # rounded: levels that differ in the last bit share one integration
    return nominal_level(round(level, 12), table.interim_analyses, table.look, rule.alpha_spending)


def _net(table: DesignTable, gain: Fit, slowdown: Fit, rule: DecisionRule) -> Net:
    rate = 100 * rule.price_points_per_percent
    price = rate * np.expm1(slowdown.effect)
    price_error = rate * np.exp(slowdown.effect) * slowdown.error  # first order: d(exp g) = exp(g) dg
    side = joint_quantile(slowdown.df, table, rule) * slowdown.error
    return Net(
        gain.effect - price,
        np.hypot(gain.error, price_error),
        np.where(price_error > 0, np.minimum(gain.df, slowdown.df), gain.df),
        price,
        rate * np.expm1(slowdown.effect - side),
        rate * np.expm1(slowdown.effect + side),
    )


def _test_difference(net: Net, table: DesignTable, rule: DecisionRule) -> tuple[Array, Array]:
    """Return level and p-value (terms,) of the test that there is no net gain."""
    p_values = 2 * _tail(np.abs(net.value), net)
    ranks = {site: 0.5**rank for rank, site in enumerate(rule.order)}  # each as much as all after it
    weights = np.array([ranks.get(site, 1.0) for site, _ in table.terms])
    return holm(p_values, weights, 1 - rule.confidence, table, rule), p_values


def _test_equivalence(net: Net, table: DesignTable, rule: DecisionRule) -> NDArray[np.bool_]:
    """Return (terms,) whether two one-sided tests place the net gain within the margin of zero."""
    # a one-sided test has the bound of a two-sided one at twice its level
    p_values = 2 * _tail(rule.equivalence_margin - np.abs(net.value), net)
    levels = holm(p_values, np.ones(len(p_values)), 2 * (1 - rule.confidence), table, rule)
    return np.asarray(p_values <= levels)


def _tail(distance: Array, net: Net) -> Array:
    """Return the one-sided p-values of a distance; without any noise they are 0, 1/2 or 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(net.error > 0, stdtr(net.df, -distance / net.error), (1 - np.sign(distance)) / 2)


def _further(
    index: int, net: Net, level: float, gain: Fit, table: DesignTable, rule: DecisionRule
) -> int | None:
    """Return the fewest further seeds, each run on every arm, that would settle a term either way."""
    further = np.arange(1, MOST_FURTHER_SEEDS + 1)
    trials = gain.num_trials + table.num_arms * further
    lost = gain.num_trials - gain.residual_df + further  # a block each
    df = trials - lost
    error = net.error[index] * np.sqrt(gain.num_trials / trials)
    away = abs(net.value[index])
    differs = away > -stdtrit(df, level / 2) * error
    same = rule.equivalence_margin - away > -stdtrit(df, level) * error
    enough = differs | same
    return int(further[enough.argmax()]) if enough.any() else None
