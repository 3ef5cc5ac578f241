"""Rows in, verdicts out: which sites' bias pays off, by a rule fixed before the first trial.

A pure function: no files, no clock, no GPU. The effect of each site is a coefficient of one
linear model over all trials, with a block per seed; interactions between sites, which the model
leaves out, are part of its noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit
from statsmodels.regression.linear_model import OLS

from experiments.arms import Table, enumerate_few, final_values, last_steps, tabulate, typical_values
from experiments.rule import DecideError, Rule
from pipeline.rows import Row, select

PAYS, COSTS, UNDECIDED = "PAYS", "COSTS", "UNDECIDED"
MOST_FURTHER_SEEDS = 100
"""Beyond a hundred trainings of every arm nobody runs them: the effect is then called too small to settle."""


@dataclass(frozen=True)
class Effect:
    """What the treatment of one site does to one metric under one condition.

    Attributes:
        site, metric, condition: which.
        effect: treatment minus baseline, points (100 times the fraction).
        low, high: its interval, points; together with the other sites' at the rule's confidence.
    """

    site: str
    metric: str
    condition: str
    effect: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """The answer for one site.

    Attributes:
        site: the attention site.
        verdict: ``PAYS``, ``COSTS`` or ``UNDECIDED``.
        effect, low, high: gain in the rule's metric with its interval, points.
        slowdown_percent: growth of the step time.
        price, price_low, price_high: what that slow-down must earn, with its interval, points.
        net, net_low, net_high: gain minus price; its interval counts the noise of both.
            PAYS is ``net_low > 0``, COSTS is ``net_high < 0``.
        further_trials: for UNDECIDED: further trials of every arm (further seeds) that would settle
            it if gain, price and noise stay as estimated; None if over ``MOST_FURTHER_SEEDS``.
            0 if it is settled.
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


@dataclass(frozen=True)
class Evidence:
    """Verdicts with all that they rest on.

    Attributes:
        rule: the rule that was applied.
        table: the design as it ran.
        verdicts: one per site.
        effects: one per site and condition; only those of the rule's condition are judged.
        residual_df: degrees of freedom left to estimate the noise.
        noise: standard deviation of one trial's metric, points.
        notes: what a reader must know: trials left out, conditions without an estimate.
    """

    rule: Rule
    table: Table
    verdicts: tuple[Verdict, ...]
    effects: tuple[Effect, ...]
    residual_df: int
    noise: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """Coefficients of the sites in the linear model.

    Attributes:
        effect: (sites,) in the unit of the response.
        error: (sites,) standard errors.
        residual_df: degrees of freedom of the noise.
        noise: standard deviation of one trial.
        num_trials: how many trials were fitted.
    """

    effect: NDArray[np.float64]
    error: NDArray[np.float64]
    residual_df: int
    noise: float
    num_trials: int


def decide(rows: Sequence[Row], rule: Rule) -> list[Verdict]:
    """Return the verdict of every site; see ``weigh`` for what they rest on.

    Raises:
        DecideError: the rows do not support a verdict; says why and what to do.
    """
    return list(weigh(rows, rule).verdicts)


def weigh(rows: Sequence[Row], rule: Rule) -> Evidence:
    """Estimate every site's effect and price and judge them by the rule.

    Intervals are Student's, widened by Bonferroni over the sites: at level ``1 - (1 - confidence) / sites``
    each. Holm's procedure would reject a little more, but has no intervals that agree with it; here a
    verdict can be read off the interval that is printed, and with orthogonal arms the loss is small.
    """
    table = tabulate(rows, rule)
    gain = _fit_condition(rows, table, rule, rule.condition)
    slowdown = _fit_price(rows, table, rule)
    verdicts = tuple(_judge(index, table, gain, slowdown, rule) for index in range(len(table.sites)))
    effects, notes = _effects(rows, table, rule)
    if table.diverged:
        notes = [f"Left out because it diverged: {name}." for name in table.diverged] + notes
    return Evidence(rule, table, verdicts, tuple(effects), gain.residual_df, gain.noise, tuple(notes))


def fit_sites(values: dict[str, float], table: Table) -> Fit:
    """Fit ``value ~ seed block + sites`` by least squares.

    Args:
        values: trial -> response; trials of the table that it lacks are left out.
        table: the design.

    Raises:
        DecideError: the remaining trials cannot tell the sites apart, or leave no noise to judge by.
    """
    trials = [trial for trial in table.trials if trial.name in values]
    treated = np.array([trial.treated for trial in trials], dtype=float).reshape(-1, len(table.sites))
    blocks = np.array([[trial.seed == seed for seed in table.seeds] for trial in trials], dtype=float)
    blocks = blocks[:, blocks.any(axis=0)] if trials else blocks.reshape(0, 0)
    matrix = np.hstack([treated, blocks])
    residual_df = len(trials) - matrix.shape[1]
    if not trials or np.linalg.matrix_rank(matrix) < matrix.shape[1]:
        raise DecideError(
            f"the {len(trials)} usable trials of {len(table.trials)} cannot tell the effects of "
            f"{', '.join(table.sites)} apart; run the missing or diverged trials again"
        )
    if residual_df < 1:
        raise DecideError(
            f"{len(trials)} trials for {len(table.sites)} sites and {blocks.shape[1]} seeds leave no degree "
            f"of freedom to estimate the noise; add a seed"
        )
    result = OLS([values[trial.name] for trial in trials], matrix).fit()
    sites = slice(0, len(table.sites))
    return Fit(result.params[sites], result.bse[sites], residual_df, math.sqrt(result.scale), len(trials))


def _fit_condition(rows: Sequence[Row], table: Table, rule: Rule, condition: str) -> Fit:
    values = final_values(rows, rule.metric, condition)
    steps = last_steps(rows, rule.metric, condition)
    names = [trial.name for trial in table.trials if trial.name not in table.diverged]
    if absent := [name for name in names if name not in values]:
        raise DecideError(f"{rule.metric} is missing in {len(absent)} trials ({enumerate_few(absent)})")
    usable = {name: 100 * values[name] for name in names if math.isfinite(values[name])}
    if not usable:
        raise DecideError(f"no trial has a finite {rule.metric} ({condition}); look at the trials' losses")
    lengths = sorted({steps[name] for name in usable})
    if len(lengths) > 1:
        raise DecideError(
            f"{rule.metric} ({condition}) was measured after {enumerate_few(map(str, lengths))} steps in "
            f"different trials; they are compared after equally many: finish with `biaswise study resume`"
        )
    return fit_sites(usable, table)


def _fit_price(rows: Sequence[Row], table: Table, rule: Rule) -> Fit:
    if rule.price_points_per_percent == 0:
        zeros = np.zeros(len(table.sites))
        return Fit(zeros, zeros, len(table.trials), 0.0, len(table.trials))
    times = typical_values(rows, rule.price_metric)
    usable = [trial.name for trial in table.trials if trial.name not in table.diverged]
    if lacking := [name for name in usable if times.get(name, 0.0) <= 0]:
        raise DecideError(
            f"{rule.price_metric} is missing or not positive in {enumerate_few(lacking)}; without it the "
            f"bias has no price (a rule with price_points_per_percent 0 asks for none)"
        )
    return fit_sites({name: math.log(times[name]) for name in usable}, table)


def _judge(index: int, table: Table, gain: Fit, slowdown: Fit, rule: Rule) -> Verdict:
    wide = float(_quantile(rule, len(table.sites), gain.residual_df))
    wide_price = float(_quantile(rule, len(table.sites), slowdown.residual_df))
    effect, error = float(gain.effect[index]), float(gain.error[index])
    growth, growth_error = float(slowdown.effect[index]), float(slowdown.error[index])
    rate = 100 * rule.price_points_per_percent
    price, price_low, price_high = (
        rate * math.expm1(growth + side * wide_price * growth_error) for side in (0, -1, 1)
    )
    price_error = rate * math.exp(growth) * growth_error  # first order: d(exp g) = exp(g) dg
    net, net_error = effect - price, math.hypot(error, price_error)
    net_low, net_high = net - wide * net_error, net + wide * net_error
    verdict = PAYS if net_low > 0 else COSTS if net_high < 0 else UNDECIDED
    return Verdict(
        site=table.sites[index],
        verdict=verdict,
        effect=effect,
        low=effect - wide * error,
        high=effect + wide * error,
        slowdown_percent=100 * math.expm1(growth),
        price=price,
        price_low=price_low,
        price_high=price_high,
        net=net,
        net_low=net_low,
        net_high=net_high,
        further_trials=_further(net, net_error, gain.num_trials, table, rule) if verdict == UNDECIDED else 0,
    )


def _quantile(rule: Rule, num_sites: int, df: ArrayLike) -> Any:
    """Return Student's two-sided quantile at the rule's confidence, shared by Bonferroni among the sites."""
    return stdtrit(df, 1 - (1 - rule.confidence) / (2 * num_sites))


def _further(net: float, error: float, num_trials: int, table: Table, rule: Rule) -> int | None:
    """Return the fewest further seeds, each run on every arm, whose interval would leave zero out."""
    further = np.arange(1, MOST_FURTHER_SEEDS + 1)
    trials = num_trials + table.num_arms * further
    residual_df = trials - (len(table.seeds) + further) - len(table.sites)
    wide = _quantile(rule, len(table.sites), residual_df)
    enough = abs(net) > wide * error * np.sqrt(num_trials / trials)
    return int(further[enough.argmax()]) if enough.any() else None


def _effects(rows: Sequence[Row], table: Table, rule: Rule) -> tuple[list[Effect], list[str]]:
    effects, notes = [], []
    others = {row.condition for row in select(rows, metric=rule.metric, site="", scene="") if row.condition}
    for condition in [rule.condition, *sorted(others - {rule.condition})]:
        try:
            fit = _fit_condition(rows, table, rule, condition)
        except DecideError as error:
            notes.append(f"No effects under the condition {condition}: {error}.")
            continue
        margin = _quantile(rule, len(table.sites), fit.residual_df) * fit.error
        for site, value, half in zip(table.sites, fit.effect, margin, strict=True):
            low, high = float(value - half), float(value + half)
            effects.append(Effect(site, rule.metric, condition, float(value), low, high))
    return effects, notes
