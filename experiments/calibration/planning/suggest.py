"""Which design and how many seeds a new study takes: the cheapest that finds its margin, or the best."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from experiments.calibration.planning.power import Power, expected_sources
from experiments.calibration.planning.study_size import KINDS, StudySize
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.factorial import Design, DesignError, Factor, fraction, full, one_at_a_time

WANTED = 0.8
"""Probability with which a net gain of the margin is to be found."""
MOST_SEEDS = 4
"""Most seeds of a suggestion: after each one the study may stop."""
MOST_ARMS = 32
"""Most arms of a suggestion."""


@dataclass(frozen=True)
class Suggestion:
    """A design and the number of its seeds.

    Attributes:
        design: arms.
        halvings: how often the full design was halved; 0 if it is none.
        seeds: at most.
        power: what the study can decide.
    """

    design: Design
    halvings: int
    seeds: int
    power: Power

    @property
    def trials(self) -> int:
        """Trials at most."""
        return len(self.design.arms) * self.seeds


def suggest(factors: list[Factor], rule: DecisionRule, most_trials: float) -> Suggestion:
    """Return the study to run.

    Args:
        factors: what varies.
        rule: margin, confidence and price.
        most_trials: that the hours allow; infinite: the cheapest study that finds the margin is taken.

    Raises:
        AnalysisError: no study of so few trials can decide anything.
    """
    judged = [made for made in _candidates(factors, rule) if made.power.can_decide]
    allowed = [made for made in judged if made.trials <= most_trials]
    if not allowed:
        least = min((made.trials for made in judged), default=0)
        needs = f"the smallest that can takes {least}" if least else f"none of {MOST_SEEDS} seeds can"
        allowance = "" if math.isinf(most_trials) else f" in {most_trials:.0f} trials"
        raise AnalysisError(
            f"a study of {len(factors)} sites{allowance} can decide nothing at a margin of "
            f"{rule.equivalence_margin:g} points; {needs}"
        )
    margin = rule.equivalence_margin
    long = [made for made in allowed if made.seeds == MOST_SEEDS]  # it stops when all is settled
    good = [made for made in long if made.power.difference(margin) >= WANTED]
    if good and math.isinf(most_trials):
        return min(good, key=lambda made: made.trials)
    return min(allowed, key=lambda made: (made.power.smallest_gain(WANTED), made.trials))


def _candidates(factors: list[Factor], rule: DecisionRule) -> Iterator[Suggestion]:
    for design, halvings in _designs(factors):
        for seeds in range(1, MOST_SEEDS + 1):
            named = _rule_of(design, rule)
            size = StudySize(KINDS[design.kind], named, design.arms, tuple(range(1, seeds + 1)))
            yield Suggestion(design, halvings, seeds, Power(size, expected_sources(size)))


def _rule_of(design: Design, rule: DecisionRule) -> DecisionRule:
    baseline, *treatments = dict.fromkeys(level for factor in design.factors for level in factor.levels)
    return replace(rule, sites=design.sites, baseline=baseline, treatments=tuple(treatments))


def _designs(factors: list[Factor]) -> Iterator[tuple[Design, int]]:
    """Yield designs: the full one and fractions with at most ``MOST_ARMS`` arms, one at a time with any."""
    several = max(len(factor.levels) for factor in factors) > 2
    if math.prod(len(factor.levels) for factor in factors) <= MOST_ARMS:
        yield full(factors), 0
    for halvings in range(1, len(factors)):
        try:
            design = fraction(factors, halvings)
        except DesignError:  # more than two levels, or so few arms tell nothing apart
            break
        if len(design.arms) <= MOST_ARMS:
            yield design, halvings
    if several:  # of two levels a fraction tells more with as many arms
        yield one_at_a_time(factors), 0
