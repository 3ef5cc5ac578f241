"""What a new study is suggested: a design that decides, the cheapest, or the best of its trials."""

import math

import pytest

from experiments.calibration.planning.suggest import MOST_SEEDS, suggest
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.factorial import Factor

RULE = DecisionRule()


def factors(number, *levels):
    return [Factor(f"decoder.{i}.cross", levels or ("none", "window")) for i in range(number)]


@pytest.mark.parametrize(("number", "kind", "arms"), [(1, "full", 2), (3, "full", 8), (6, "fraction", 16)])
def test_without_a_limit_it_is_the_cheapest_that_finds_the_margin(number, kind, arms):
    found = suggest(factors(number), RULE, math.inf)
    assert (found.design.kind, len(found.design.arms), found.seeds) == (kind, arms, MOST_SEEDS)
    assert found.power.difference(RULE.equivalence_margin) >= 0.8


def test_more_trials_find_less():
    gains = [suggest(factors(3), RULE, most).power.smallest_gain(0.8) for most in (8, 16, 32)]
    assert gains == sorted(gains, reverse=True)
    assert suggest(factors(3), RULE, 15).trials == 8


def test_three_levels_of_six_sites_take_one_at_a_time():
    assert suggest(factors(6, "none", "window", "gaussian"), RULE, math.inf).design.kind == "one_at_a_time"


def test_a_study_that_decides_nothing_is_refused():
    with pytest.raises(AnalysisError, match=r"6 sites in 15 trials can decide nothing .* that can takes 16"):
        suggest(factors(6), RULE, 15)
