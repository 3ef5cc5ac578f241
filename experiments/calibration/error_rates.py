"""How often verdicts are right, on simulated studies whose truth is known.

Every study is fitted by ``linear_model.fit_gain`` and judged by ``verdicts.judge``, as real studies are, and
goes from look to look as ``study.next_wave`` does. Planted effects are net of price, in noises of one run.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import stdtrit
from statsmodels.stats.proportion import proportion_confint

from experiments.analysis.verdicts import COSTS, PAYS, UNDECIDED, Verdict
from experiments.calibration.simulation import (
    SimulatedMeasurement,
    Surface,
    fit_look,
    follow,
    measure,
    sites_with,
)
from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.factorial import Arm, Factor, fraction, full

SITES = tuple(f"decoder.{layer}.cross" for layer in range(6))
"""The layers of the published detectors."""
TWICE = 2.0
"""The effect that has to be found: twice the noise of one run."""


@dataclass(frozen=True)
class Study:
    """A simulated study.

    Attributes:
        name: for tables.
        sites: its factors.
        arms: the arms that run with every seed.
        interim_analyses: numbers of seeds after which it is judged.
    """

    name: str
    sites: tuple[str, ...]
    arms: tuple[Arm, ...]
    interim_analyses: tuple[int, ...]

    def rule(self, confidence: float = 0.95, order: tuple[str, ...] = ()) -> DecisionRule:
        """Return its rule: no price, and an equivalence margin of one noise of a run."""
        return DecisionRule(
            sites=self.sites,
            seeds=tuple(range(self.interim_analyses[-1])),
            interim_analyses=self.interim_analyses,
            arms=self.arms,
            price_points_per_percent=0.0,
            equivalence_margin=1.0,
            confidence=confidence,
            order=order,
        )

    @property
    def most_trials(self) -> int:
        """Trials if it goes to its last look."""
        return len(self.arms) * self.interim_analyses[-1]


_SIX = [Factor(site) for site in SITES]
GRID = Study("full grid", SITES, full(_SIX).arms, (3,))
LEAN = Study("sequential fraction", SITES, fraction(_SIX, 2).arms, (1, 2))
LONG = replace(LEAN, name="sequential fraction, 6 looks", interim_analyses=(1, 2, 3, 4, 5, 6))
AGAIN = replace(GRID, name="another full grid")
APART = replace(LEAN, name="sequential fraction on trainings of its own")
ORDERED = replace(LEAN, name="screening + sequential fraction")
MISLED = replace(LEAN, name="the same, a screening that errs twice as much")
SCREENED = Study("screening + confirmation", SITES, LEAN.arms, (1,))
SMALL = Study("three layers, two seeds", SITES[:3], full(_SIX[:3]).arms, (2,))


@dataclass(frozen=True)
class Scenario:
    """A planted truth.

    Attributes:
        name: for tables.
        surface: the true effects and noises.
        study: the study that is run.
    """

    name: str
    surface: Surface
    study: Study = LEAN


def scenarios() -> tuple[Scenario, ...]:
    """Return the planted truths of the calibration."""
    none = Surface(dict.fromkeys(SITES, 0.0))
    one = Surface({**none.gain, SITES[1]: TWICE})
    two = Surface({**one.gain, SITES[4]: -TWICE})
    pair = replace(one, gain={**none.gain, SITES[0]: 1.5, SITES[1]: 1.5}, pairs={(SITES[0], SITES[1]): 2.0})
    small = Surface(dict.fromkeys(SITES[:3], 0.0))
    return (
        Scenario("no effect", none),
        Scenario("no effect, stopped when settled, up to six looks", none, LONG),
        Scenario("no effect, three layers", small, SMALL),
        Scenario("one layer", one),
        Scenario("one layer of three", replace(small, gain={**small.gain, SITES[1]: TWICE}), SMALL),
        Scenario("two opposite layers", two),
        Scenario("interaction of two layers", pair),
        Scenario("heavy tails, no effect", replace(none, tails=3.0)),
        Scenario("heavy tails, one layer", replace(one, tails=3.0)),
        Scenario("a diverged run, one layer", replace(one, diverging=1)),
        Scenario("a diverged seed, one layer", replace(one, lost_seed=0)),
        Scenario("a collapsed run, no effect", replace(none, collapsing=1)),
        Scenario("a collapsed run, one layer", replace(one, collapsing=1)),
        Scenario("early stopping, no effect", replace(none, stopping=True)),
        Scenario("early stopping, one layer", replace(one, stopping=True)),
        Scenario("scenes matter much, one layer", replace(one, scene_gain=0.4)),
        Scenario("every gain at the margin", Surface(dict.fromkeys(SITES, 1.0)), LONG),
    )


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
    """

    studies: int = 0
    refused: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    intervals: int = 0
    covered: int = 0
    trials: int = 0
    verdicts: int = 0
    undecided: int = 0

    def rate(self, event: str) -> tuple[float, float, float]:
        """Return the rate of an event with its 95 % interval (Clopper and Pearson)."""
        return with_interval(self.counts[event], self.studies)


def with_interval(count: int, total: int) -> tuple[float, float, float]:
    """Return a rate with its 95 % interval (Clopper and Pearson); NaN without any trials."""
    if not total:
        return (float("nan"),) * 3
    low, high = proportion_confint(count, total, alpha=0.05, method="beta")
    return count / total, float(low), float(high)


def calibrate_scenario(scenario: Scenario, studies: int, tick: Callable[[], None] = lambda: None) -> Tally:
    """Judge a scenario's studies.

    Args:
        scenario: the truth and the study.
        studies: number of simulated studies.
        tick: called after each.
    """
    tally, study = Tally(), scenario.study
    rule = study.rule()
    for draw in range(studies):
        rng = np.random.default_rng([draw, *scenario.name.encode()])
        measured = measure(scenario.surface, study.arms, rule.seeds, rng)
        verdicts, trials = follow(measured, study.arms, rule)
        tally.studies += 1
        tally.trials += trials
        if not verdicts:
            tally.refused += 1
        else:
            _count(tally, verdicts, scenario.surface, rule)
            _count_single(tally, measured, scenario.surface, rule)
        tick()
    return tally


def _count(tally: Tally, verdicts: Sequence[Verdict], surface: Surface, rule: DecisionRule) -> None:
    truth = surface.gain
    pays, costs = sites_with(verdicts, PAYS), sites_with(verdicts, COSTS)
    good = {site for site, gain in truth.items() if gain > 0}
    bad = {site for site, gain in truth.items() if gain < 0}
    off = {v.site for v in verdicts if v.equivalent and abs(truth[v.site]) >= rule.equivalence_margin}
    events = {
        "false PAYS": bool(pays - good),
        "false COSTS": bool(costs - bad),
        "found": good <= pays and bad <= costs,
        "false equivalence": bool(off),
        "all intervals hold": all(v.low <= truth[v.site] <= v.high for v in verdicts),
        "settled": all(v.settled for v in verdicts),
    }
    tally.counts.update(event for event, happened in events.items() if happened)
    tally.verdicts += len(verdicts)
    tally.undecided += sum(v.verdict == UNDECIDED for v in verdicts)


def _count_single(tally: Tally, measured: SimulatedMeasurement, surface: Surface, rule: DecisionRule) -> None:
    """Count the sites whose own 95 % interval holds the truth after all trials, as with one look."""
    fit, table = fit_look(measured, rule.arms, len(rule.interim_analyses), rule)
    wide = -stdtrit(fit.df, 0.025) * fit.error
    truth = np.array([surface.gain[site] for site, _ in table.terms])
    tally.intervals += len(truth)
    tally.covered += int((np.abs(fit.effect - truth) <= wide).sum())
