"""Simulated studies judged by the code that judges real ones, look by look."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.decision.choice import by_utility, settled_plan
from experiments.analysis.decision.plan_net import predict_plans
from experiments.analysis.design_table import DesignTable, TrialRow
from experiments.analysis.model.failures import count_failures
from experiments.analysis.model.fit import Fit, Response
from experiments.analysis.model.linear_model import fit_gain
from experiments.analysis.model.run_order import RunOrder
from experiments.analysis.price import fit_trial_times, free_of_charge
from experiments.analysis.price_model import Price, fit_price
from experiments.analysis.recommend import all_plans
from experiments.analysis.verdicts import Verdict, judge
from experiments.calibration.simulation import TimedTrials, Trained, time_steps
from experiments.calibration.truth import StepTimes
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.factorial import Arm


@dataclass(frozen=True)
class Judged:
    """A study at a look.

    Attributes:
        verdicts: one per site.
        gain: the fit of the gains.
        price: what it was weighed against.
        table: the design as it ran.
        trials: how many were planned by then.
    """

    verdicts: tuple[Verdict, ...]
    gain: Fit
    price: Price
    table: DesignTable
    trials: int


@dataclass(frozen=True)
class NamedPlans:
    """What a study says about plans.

    Attributes:
        settled: the sites that the settled plan treats; None if no plan is settled.
        best: the sites that the best guess treats.
        predicted: expected net gain of the best guess.
    """

    settled: frozenset[str] | None
    best: frozenset[str]
    predicted: float


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
    response, table, kept = observed(trained, arms, look, rule)
    gain = fit_gain(response, table)
    known = _price(price, table, kept)
    verdicts = judge(table, gain, known, rule, count_failures(table, gain.collapsed))
    return Judged(verdicts, gain, known, table, rule.interim_analyses[look - 1] * len(arms))


def name_plans(judged: Judged, rule: DecisionRule) -> NamedPlans:
    """Return the settled plan and the best guess."""
    table = judged.table
    nets = predict_plans(tuple(all_plans(table)), table, judged.gain, judged.price, rule)
    best, settled = by_utility(nets, table)[0], settled_plan(nets, judged.verdicts, table, rule)
    return NamedPlans(
        None if settled is None else _treated(nets.levels[settled], table),
        _treated(nets.levels[best], table),
        float(nets.shrunk[best] - nets.price[best]),
    )


def observed(
    trained: Trained, arms: Sequence[Arm], look: int, rule: DecisionRule
) -> tuple[Response, DesignTable, NDArray[np.int64]]:
    """Return what a look sees of the trials, those of its seeds that ran: their scores, table and indices."""
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
    lost = trained.lost[kept]
    table = _table(rule.sites, tuple(arms), seeds, look, rule.interim_analyses, tuple(ran.tolist()))
    if lost.any():
        names = (trial.name for trial, gone in zip(table.trials, lost, strict=True) if gone)
        table = replace(table, diverged=tuple(names))
    return part, table, kept


STEP_S = 60.0
"""Seconds from one trial's start to the next one's."""
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


def _price(price: Price | TimedTrials | None, table: DesignTable, kept: NDArray[np.int64]) -> Price:
    if price is None:
        return free_of_charge(table)
    if isinstance(price, TimedTrials):
        places = tuple((0.0, float(slot)) for slot in price.slot[kept])
        order = RunOrder(np.asarray(STEP_S * price.place[kept], dtype=np.float64), places)
        log_ms = np.where([t.name in table.diverged for t in table.trials], np.nan, price.log_ms[kept])
        return fit_trial_times(log_ms, table, order)[0]
    return price


def _treated(levels: Arm, table: DesignTable) -> frozenset[str]:
    return frozenset(site for site, at in zip(table.sites, levels, strict=True) if at != table.baseline)


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
