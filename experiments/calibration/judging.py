"""Simulated studies judged by the code that judges real ones, look by look."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.design_table import DesignTable, TrialRow
from experiments.analysis.model.fit import Fit, Response
from experiments.analysis.model.linear_model import fit_gain, fit_sites
from experiments.analysis.price import no_slowdown
from experiments.analysis.price_model import Price, fit_price
from experiments.analysis.verdicts import Verdict, judge
from experiments.calibration.simulation import TimedTrials, Trained, time_steps
from experiments.calibration.truth import StepTimes
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.factorial import Arm


@dataclass(frozen=True)
class Judged:
    """A study at its last look.

    Attributes:
        verdicts: one per site.
        gain: the fit of the gains.
        trials: how many were run.
    """

    verdicts: tuple[Verdict, ...]
    gain: Fit
    trials: int


def judge_study(
    trained: Trained, arms: Sequence[Arm], rule: DecisionRule, price: Price | TimedTrials | None = None
) -> Judged | None:
    """Go from look to look as ``study.next_wave`` does, until all is settled or no look is left.

    Args:
        trained: at least these arms with all seeds.
        arms: those of the study.
        rule: names its sites, seeds and looks.
        price: by the stopwatch, or what the trials' own times were; None: there is no price.

    Returns:
        None if the trials support no verdict at the last look.
    """
    for look in range(1, len(rule.interim_analyses) + 1):
        try:
            judged = judge_look(trained, arms, look, rule, price)
        except AnalysisError:  # too many trials diverged; there may be a next look
            judged = None
        last = look == len(rule.interim_analyses)
        if last or (judged is not None and all(verdict.settled for verdict in judged.verdicts)):
            return judged
    raise ValueError("the rule has no looks; name them")


def judge_look(
    trained: Trained,
    arms: Sequence[Arm],
    look: int,
    rule: DecisionRule,
    price: Price | TimedTrials | None = None,
) -> Judged:
    """Judge a study at one look.

    Raises:
        AnalysisError: see ``fit_gain`` and ``judge``.
    """
    response, table = observed(trained, arms, look, rule)
    gain = fit_gain(response, table)
    seeds = rule.interim_analyses[look - 1]
    return Judged(judge(table, gain, _slowdown(price, table), rule), gain, seeds * len(arms))


def observed(
    trained: Trained, arms: Sequence[Arm], look: int, rule: DecisionRule
) -> tuple[Response, DesignTable]:
    """Return what a look sees of the trials: those of its seeds that ran."""
    seeds = trained.seeds[: rule.interim_analyses[look - 1]]
    columns = _columns(trained.arms, tuple(arms), len(trained.seeds), len(seeds))
    ran = ~trained.absent[columns]
    kept, response = columns[ran], trained.response
    part = Response(
        response.values[kept],
        response.draws[:, kept],
        response.num_scenes,
        response.early_values[:, kept] if len(response.early_values) else response.early_values,
    )
    table = _table(rule.sites, tuple(arms), seeds, look, rule.interim_analyses, tuple(ran.tolist()))
    return part, table


PRICES: dict[tuple[object, ...], Price] = {}
"""Fits of the stopwatch by (truth, arms, draw). Scenarios share them: a study's price does not depend on what
it gains, and the studies of one scenario have draws of their own. A fit takes most of a study's time."""


def price_by_stopwatch(times: StepTimes, sites: tuple[str, ...], arms: tuple[Arm, ...], draw: int) -> Price:
    """Return the price of a run of the stopwatch."""
    key = (times, arms, draw)
    rng = np.random.default_rng([draw, len(sites), *repr(times).encode()])
    while key not in PRICES:
        with contextlib.suppress(AnalysisError):  # A/A beyond chance: the stopwatch is to run again
            PRICES[key] = fit_price(time_steps(times, sites, arms, rng))
    return PRICES[key]


def _slowdown(price: Price | TimedTrials | None, table: DesignTable) -> Fit:
    if price is None:
        return no_slowdown(table)
    if isinstance(price, TimedTrials):
        return fit_sites(Response(price.log_ms), table)
    sites = slice(1, 1 + len(table.terms))
    df = np.full(len(table.terms), price.df)
    return Fit(price.effect[sites], price.error[sites], df, int(price.df), 0.0, 0, np.zeros(len(df)))


@lru_cache
def _columns(have: tuple[Arm, ...], want: tuple[Arm, ...], of: int, seeds: int) -> NDArray[np.int64]:
    return np.array([have.index(arm) * of + seed for arm in want for seed in range(seeds)])


@lru_cache(maxsize=4096)
def _table(
    sites: tuple[str, ...],
    arms: tuple[Arm, ...],
    seeds: tuple[int, ...],
    look: int,
    looks: tuple[int, ...],
    ran: tuple[bool, ...],
) -> DesignTable:
    trials = [TrialRow(f"{index}-s{seed}", seed, arm) for index, arm in enumerate(arms) for seed in seeds]
    present = tuple(trial for trial, here in zip(trials, ran, strict=True) if here)
    return DesignTable(sites, present, (), look=look, interim_analyses=looks)
