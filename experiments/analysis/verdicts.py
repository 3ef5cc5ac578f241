"""Gains weighed against prices by the rule, over all sites and looks together.

Real and simulated studies end in ``judge``. Two promises, each at the rule's confidence: no claim of the
study is false (PAYS, COSTS and NO DIFFERENCE of all sites together, ``decision.levels``), and the intervals
of the gains all hold (Bonferroni). The first settles more than intervals do, and no intervals of a bounded
length agree with it, so each promise has its own procedure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from experiments.analysis.decision.break_even import BreakEven, Estimate, break_even
from experiments.analysis.decision.levels import difference_levels, equal_share, joint_quantile
from experiments.analysis.decision.net_gain import Net, net_of_sites
from experiments.analysis.decision.settling import Effort, ToSettle, what_would_settle
from experiments.analysis.design_table import DesignTable
from experiments.analysis.model.failures import Failures
from experiments.analysis.model.fit import Fit
from experiments.analysis.price_model import Price
from experiments.recipes.decision_rule import SCREENING, DecisionRule, ScreeningMissing

Array = NDArray[np.float64]

PAYS, COSTS, NO_DIFFERENCE, UNDECIDED = "PAYS", "COSTS", "NO DIFFERENCE", "UNDECIDED"
VERDICTS = (PAYS, COSTS, NO_DIFFERENCE, UNDECIDED)


@dataclass(frozen=True)
class Verdict:
    """The answer for one site (and one treatment, if the rule names several).

    Attributes:
        site: the attention site.
        verdict: one of ``VERDICTS``.
        effect, low, high: gain in the rule's metric, points; all sites' intervals hold together, at every
            look, with the rule's confidence.
        slowdown_percent: growth of the step time by the site alone, without the fixed price.
        price, price_low, price_high: what that slow-down must earn, with its interval, points.
        net, net_low, net_high: gain minus price; its interval counts the noise of both, at the level at
            which this site is tested, by itself. PAYS is ``net_low > 0``, COSTS is ``net_high < 0``. NaN
            without a price, as are all numbers below.
        to_settle: what would settle it; None if it is settled, or has no price.
        treatment: the level that is compared with the baseline.
        equivalent: whether the net gain is certainly within the rule's margin of zero. NO DIFFERENCE if it
            neither PAYS nor COSTS.
        p_value: two-sided, of no net gain; not adjusted.
        tested_at: the two-sided level it was tested at.
        break_even: points per per cent of slow-down up to which it pays.
        price_share: share of the squared error of the net gain that is due to the price, 0 to 1.
        failures: failed trainings, if a larger share fails with the bias: the gain is that of the others.
    """

    site: str
    verdict: str
    effect: float
    low: float
    high: float
    slowdown_percent: float = math.nan
    price: float = math.nan
    price_low: float = math.nan
    price_high: float = math.nan
    net: float = math.nan
    net_low: float = math.nan
    net_high: float = math.nan
    to_settle: ToSettle | None = None
    treatment: str = ""
    equivalent: bool = False
    p_value: float = math.nan
    tested_at: float = math.nan
    break_even: BreakEven | None = None
    failures: Failures | None = None
    price_share: float = math.nan

    @property
    def settled(self) -> bool:
        """Whether more trials are of no use."""
        return self.verdict != UNDECIDED

    @property
    def pays_alone(self) -> bool:
        """Whether it pays without a reserve."""
        return self.verdict == PAYS and self.failures is None

    @property
    def label(self) -> str:
        """The verdict with its reserve."""
        return "PAYS where it trains" if self.verdict == PAYS and self.failures else self.verdict


def judge(
    table: DesignTable, gain: Fit, price: Price | None, rule: DecisionRule, failures: Sequence[Failures] = ()
) -> tuple[Verdict, ...]:
    """Weigh gains against prices.

    Args:
        table: the design, with the look that was reached.
        gain: effects on the rule's metric, points.
        price: growth of the logarithm of the step time; None if it is not known, which leaves every
            verdict UNDECIDED.
        rule: the rule.
        failures: of every term.

    Raises:
        ScreeningMissing: the rule takes its order from a screening, and it is not filled in.
    """
    if rule.order_by == SCREENING:
        raise ScreeningMissing(
            "the rule tests the layers in the order of the study's screening, and there is none; run "
            "`biaswise study screen` with the study's recipe, then `biaswise study resume`"
        )
    wide = joint_quantile(gain.df, table, rule) * gain.error
    more = {(f.site, f.treatment): f for f in failures if f.more_with}
    gains = [
        Verdict(
            site,
            UNDECIDED,
            float(gain.effect[i]),
            float(gain.effect[i] - wide[i]),
            float(gain.effect[i] + wide[i]),
            treatment=treatment,
            failures=more.get((site, treatment)),
        )
        for i, (site, treatment) in enumerate(table.terms)
    ]
    return tuple(gains) if price is None else _weighed(gains, Effort(table, rule, gain, price))


def _weighed(gains: Sequence[Verdict], study: Effort) -> tuple[Verdict, ...]:
    """Return the verdicts with everything that needs a price."""
    table, rule, price = study.table, study.rule, study.price
    net = net_of_sites(table, study.gain, price, rule)
    tested_at, p_values = _test_difference(net, table, rule)
    same = _test_equivalence(net, table, rule)
    reach = -stdtrit(net.df, tested_at / 2) * net.error
    verdicts = []
    for i, v in enumerate(gains):
        low, high = float(net.value[i] - reach[i]), float(net.value[i] + reach[i])
        verdict = PAYS if low > 0 else COSTS if high < 0 else NO_DIFFERENCE if same[i] else UNDECIDED
        to_settle = what_would_settle(i, net, float(tested_at[i]), study) if verdict == UNDECIDED else None
        gained = Estimate(float(study.gain.effect[i]), float(study.gain.error[i]), float(study.gain.df[i]))
        slowed = Estimate(float(price.percent[1 + i]), float(price.percent_error[1 + i]), price.df)
        verdicts.append(
            Verdict(
                site=v.site,
                verdict=verdict,
                effect=v.effect,
                low=v.low,
                high=v.high,
                slowdown_percent=slowed.value,
                price=float(net.price[i]),
                price_low=float(net.price_low[i]),
                price_high=float(net.price_high[i]),
                net=float(net.value[i]),
                net_low=low,
                net_high=high,
                to_settle=to_settle,
                price_share=float(net.timing[i] / net.error[i] ** 2) if net.error[i] else 0.0,
                treatment=v.treatment,
                equivalent=bool(same[i]),
                p_value=float(p_values[i]),
                tested_at=float(tested_at[i]),
                break_even=break_even(gained, slowed, rule.confidence),
                failures=v.failures,
            )
        )
    return tuple(verdicts)


def _test_difference(net: Net, table: DesignTable, rule: DecisionRule) -> tuple[Array, Array]:
    """Return level and p-value (terms,) of the test that there is no net gain."""
    p_values = 2 * _tail(np.abs(net.value), net)
    ranks = {site: 0.5**rank for rank, site in enumerate(rule.order)}  # each as much as all after it
    weights = np.array([ranks.get(site, 1.0) for site, _ in table.terms])
    return difference_levels(p_values, weights, table, rule), p_values


def _test_equivalence(net: Net, table: DesignTable, rule: DecisionRule) -> NDArray[np.bool_]:
    """Return (terms,) whether the interval at the equal share of the level is within the margin."""
    p_values = 2 * _tail(rule.equivalence_margin - np.abs(net.value), net)
    return np.asarray(p_values <= equal_share(table, rule))


def _tail(distance: Array, net: Net) -> Array:
    """Return the one-sided p-values of a distance; without any noise they are 0, 1/2 or 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(net.error > 0, stdtr(net.df, -distance / net.error), (1 - np.sign(distance)) / 2)
