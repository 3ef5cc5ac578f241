"""How often verdicts are right, on simulated studies whose truth is known."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit
from statsmodels.stats.proportion import proportion_confint

from experiments.analysis.price_model import Price
from experiments.analysis.verdicts import COSTS, NO_DIFFERENCE, PAYS, UNDECIDED, Verdict
from experiments.calibration.judging import Judged, NamedPlans, judge_study, name_plans, price_by_stopwatch
from experiments.calibration.scenarios import Scenario
from experiments.calibration.simulation import TimedTrials, Trained, ranked, time_trials, train
from experiments.recipes.decision_rule import DecisionRule

SCREENING_ERROR = 0.7
"""Assumed standard error of a screening's estimate of a site, noises of one run: to switch a bias off is not
to train without it. In the demo, with 4 steps per trial, it was half a noise (docs/log.md)."""
ROUNDING = 1e-9
"""A net gain so near to the margin is at the margin."""


@dataclass
class Tally:
    """Counts over studies.

    Attributes:
        studies: number of studies.
        refused: number of studies that could not be judged.
        counts: event -> studies in which it happened.
        intervals: number of single intervals.
        covered: number of single intervals that hold the truth.
        trials: trials of all studies.
        verdicts: all verdicts.
        undecided: number of undecided verdicts.
        overrated: sum over studies of the best guess's predicted minus its true net gain.
    """

    studies: int = 0
    refused: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    intervals: int = 0
    covered: int = 0
    trials: int = 0
    verdicts: int = 0
    undecided: int = 0
    overrated: float = 0.0

    def rate(self, event: str) -> tuple[float, float, float]:
        """Return the rate of an event with its 95 % interval (Clopper and Pearson)."""
        return with_interval(self.counts[event], self.studies)


def with_interval(count: int, total: int) -> tuple[float, float, float]:
    """Return a rate with its 95 % interval (Clopper and Pearson); NaN without any trials."""
    if not total:
        return (float("nan"),) * 3
    low, high = proportion_confint(count, total, alpha=0.05, method="beta")
    return count / total, float(low), float(high)


def calibrate_scenario(scenario: Scenario, studies: int) -> Tally:
    """Judge a scenario's studies.

    Args:
        scenario: the truth and the study.
        studies: number of simulated studies.
    """
    tally, study = Tally(), scenario.study
    seeds = study.rule().seeds
    for draw in range(studies):
        rng = np.random.default_rng([draw, *f"{scenario.name}, {study.name}".encode()])
        trained = train(scenario.truth, study.arms, seeds, rng)
        rule = study.rule(order=_order(scenario, trained, rng))
        judged = judge_study(trained, study.arms, rule, _price(scenario, draw, rng))
        tally.studies += 1
        if judged is None:
            tally.refused += 1
        else:
            _count(tally, judged, scenario, rule)
    return tally


def _order(scenario: Scenario, trained: Trained, rng: np.random.Generator) -> tuple[str, ...]:
    if scenario.screening is None:
        return ()
    return ranked(scenario.truth, SCREENING_ERROR, rng, trained, scenario.screening)


def _price(scenario: Scenario, draw: int, rng: np.random.Generator) -> Price | TimedTrials | None:
    times, study = scenario.truth.times, scenario.study
    if times is None:
        return None
    if study.priced_by == "trials":
        return time_trials(times, study.arms, study.rule().seeds, rng)
    return price_by_stopwatch(times, study.sites, study.arms, draw)


def _count(tally: Tally, judged: Judged, scenario: Scenario, rule: DecisionRule) -> None:
    events = dict(_claims(judged.verdicts, scenario, rule))
    events |= dict(_intervals(judged, scenario))
    plans = name_plans(judged, rule)
    events |= dict(_plans(plans, scenario))
    tally.overrated += plans.predicted - scenario.truth.plan_net(plans.best)
    tally.counts.update(event for event, happened in events.items() if happened)
    tally.trials += judged.trials
    tally.verdicts += len(judged.verdicts)
    tally.undecided += sum(verdict.verdict == UNDECIDED for verdict in judged.verdicts)
    if not scenario.truth.faults.crashing:  # else a gain has two meanings
        truth = np.array([scenario.truth.gains[verdict.site] for verdict in judged.verdicts])
        wide = -stdtrit(judged.gain.df, 0.025) * judged.gain.error
        tally.intervals += len(truth)
        tally.covered += int((np.abs(judged.gain.effect - truth) <= wide).sum())


def _claims(
    verdicts: tuple[Verdict, ...], scenario: Scenario, rule: DecisionRule
) -> Iterator[tuple[str, bool]]:
    """Yield which claims of a study are wrong, and whether it found all that there is."""
    truth = scenario.truth.judged
    pays, costs, same = (sites_with(verdicts, told) for told in (PAYS, COSTS, NO_DIFFERENCE))
    good = {site for site, net in truth.items() if net > 0}
    bad = {site for site, net in truth.items() if net < 0}
    reserved = {verdict.site for verdict in verdicts if verdict.verdict == PAYS and not verdict.pays_alone}
    trains_well = {site for site, net in scenario.truth.net.items() if net > 0}
    off = {site for site, net in truth.items() if abs(net) >= rule.equivalence_margin - ROUNDING}
    wrong_pays = pays - reserved - good or reserved - trains_well
    wrong = {"PAYS": bool(wrong_pays), "COSTS": bool(costs - bad), "NO DIFFERENCE": bool(same & off)}
    yield from ((f"false {told}", happened) for told, happened in wrong.items())
    yield "any false claim", any(wrong.values())
    yield "found", good <= pays and bad <= costs
    yield "settled", all(verdict.settled for verdict in verdicts)


def _intervals(judged: Judged, scenario: Scenario) -> Iterator[tuple[str, bool]]:
    truth = scenario.truth.gains
    yield "all intervals hold", all(v.low <= truth[v.site] <= v.high for v in judged.verdicts)


def _plans(plans: NamedPlans, scenario: Scenario) -> Iterator[tuple[str, bool]]:
    """Yield whether the plans that a study names are truly worse than no bias anywhere."""
    settled = plans.settled
    yield "a plan is settled", settled is not None
    yield "settled plan worse", settled is not None and scenario.truth.plan_net(settled) < -ROUNDING
    yield "best guess worse", scenario.truth.plan_net(plans.best) < -ROUNDING


def sites_with(verdicts: Sequence[Verdict], told: str) -> frozenset[str]:
    """Return the sites with a verdict."""
    return frozenset(verdict.site for verdict in verdicts if verdict.verdict == told)
