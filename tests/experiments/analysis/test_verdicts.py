"""Verdicts: Holm by hand, equivalence by hand, ranks of a screening, and rules that are refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom
from scipy.stats import t as student

from experiments.analysis.decision.levels import difference_levels
from experiments.analysis.design_table import DesignTable, TrialRow
from experiments.analysis.model.fit import Fit
from experiments.analysis.price import free_of_charge
from experiments.analysis.verdicts import COSTS, NO_DIFFERENCE, PAYS, UNDECIDED, judge
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.factorial import Factor, fraction, full
from tests.experiments.planted_rows import window_rule

DF = 20
SITES = tuple("abcd")
RULE = window_rule(sites=SITES, price_points_per_percent=0.0, equivalence_margin=1.0)


def table_of(sites=SITES, interim_analyses=(1,), look=1):
    design = full([Factor(site) for site in sites])
    trials = tuple(TrialRow(str(i), 0, arm) for i, arm in enumerate(design.arms))
    return DesignTable(tuple(sites), trials, (), interim_analyses=interim_analyses, look=look)


def fit_of(effects, error):
    effects = np.array(effects, dtype=float)
    same = np.full(len(effects), float(error))
    return Fit(effects, same, np.full(len(effects), float(DF)), DF, 1.0, 32, 0 * effects)


def judged(effects, error, rule=RULE, **changes):
    table = table_of(rule.sites, **changes)
    return judge(table, fit_of(effects, error), free_of_charge(table), rule)


def quantile(level):
    return student.isf(level / 2, DF)


def test_levels_by_hand():
    # 0.05 among four; a settled one leaves half of its quarter: then 7/8 of 0.05 among three, 6/8 among two
    p_values = np.array([0.0145, 0.9, 0.001, 0.03])
    levels = difference_levels(p_values, np.ones(4), table_of(), RULE)
    assert levels == pytest.approx([0.05 * 7 / 8 / 3, 0.05 * 6 / 8 / 2, 0.0125, 0.05 * 6 / 8 / 2])


def test_ranks_weigh_the_levels_and_leave_them_to_the_rest():
    weights = np.array([8.0, 4.0, 2.0, 1.0])
    p_values = np.array([0.026, 0.02, 0.9, 0.9])
    levels = difference_levels(p_values, weights, table_of(), RULE)
    # first by p / weight is the first: 0.026 <= 0.05 * 8/15; then 0.02 <= 0.05 * 7/8 * 4/7
    assert levels[:2] == pytest.approx([0.05 * 8 / 15, 0.05 * 7 / 8 * 4 / 7])
    assert levels[2:] == pytest.approx([0.05 * 6 / 8 * 2 / 3, 0.05 * 6 / 8 * 1 / 3])
    assert (difference_levels(p_values, np.ones(4), table_of(), RULE)[:2] < p_values[:2]).all()


def test_a_screening_that_ranks_a_layer_first_lets_less_settle_it():
    just = 0.5 * (quantile(0.05 * 8 / 15) + quantile(0.05 / 4))
    plain = judged([just, 0, 0, 0], 1.0)
    first = judged([just, 0, 0, 0], 1.0, replace(RULE, order=("a", "b", "c", "d")))
    last = judged([just, 0, 0, 0], 1.0, replace(RULE, order=("d", "c", "b", "a")))
    assert [found[0].verdict for found in (plain, first, last)] == [UNDECIDED, PAYS, UNDECIDED]


def test_verdicts_are_read_off_the_net_interval():
    verdicts = judged([9, -9, 0.1, 2.2], 1.0)
    assert [v.verdict for v in verdicts] == [PAYS, COSTS, UNDECIDED, UNDECIDED]
    for v in verdicts:
        assert (v.verdict == PAYS) == (v.net_low > 0)
        assert (v.verdict == COSTS) == (v.net_high < 0)
        assert (v.p_value <= v.tested_at) == (v.verdict != UNDECIDED)
        # all intervals of the gains hold together
        assert v.high - v.effect == pytest.approx(quantile(0.05 / 4), abs=1e-9)


def test_no_difference_is_an_interval_within_the_margin_at_the_equal_share():
    wide = 0.3 * quantile(0.05 / 4)
    inside, outside = (1 - wide) * 0.99, (1 - wide) * 1.01
    verdicts = judged([inside, 5, 5, 5], 0.3)
    assert [v.equivalent for v in verdicts] == [True, False, False, False]
    assert verdicts[0].verdict == NO_DIFFERENCE
    assert verdicts[0].settled
    assert verdicts[0].to_settle is None
    beyond = judged([outside, 5, 5, 5], 0.3)[0]
    assert not beyond.equivalent
    assert beyond.verdict == UNDECIDED


def test_what_certainly_pays_and_is_within_the_margin_pays():
    verdict = judged([0.5, 0, 0, 0], 0.1)[0]
    assert (verdict.verdict, verdict.equivalent) == (PAYS, True)


def test_claims_of_all_three_kinds_are_false_together_as_rarely_as_promised():
    """Half of the layers at the margin, half at zero: two families apart are wrong in 9 % (0.2.0)."""
    studies, wrong = 4000, 0
    rng = np.random.default_rng(0)
    for error in (
        0.20,
        0.25,
        0.30,
    ):  # the margin is 3 to 5 standard errors: both kinds are claimed, and may err
        table, truth = table_of(), np.array([1.0, 1.0, 0.0, 0.0])
        chi = np.sqrt(rng.chisquare(DF, studies) / DF)
        for draw in range(studies // 10):
            found = truth + error * rng.standard_normal(4)
            verdicts = judge(table, fit_of(found, error * chi[draw]), free_of_charge(table), RULE)
            wrong += any(
                (v.verdict in (PAYS, COSTS) and t == 0) or (v.equivalent and t == 1) or v.verdict == COSTS
                for v, t in zip(verdicts, truth, strict=True)
            )
    assert wrong <= binom.ppf(0.999, 3 * studies // 10, 0.05)
    assert wrong >= binom.ppf(0.001, 3 * studies // 10, 0.02)  # not by never claiming anything


def test_an_early_look_asks_for_more():
    effects = [quantile(0.05 / 4) * 1.05, 0, 0, 0]
    assert judged(effects, 1.0)[0].verdict == PAYS
    early = judged(effects, 1.0, interim_analyses=(1, 2), look=1)
    assert early[0].verdict == UNDECIDED
    assert early[0].tested_at < 0.001  # O'Brien and Fleming spend a sixteenth of the level at half-time


def test_without_noise_verdicts_are_certain():
    verdicts = judged([1e-6, -1e-6, 0, 3], 0.0)
    assert [v.verdict for v in verdicts] == [PAYS, COSTS, NO_DIFFERENCE, PAYS]
    assert [v.equivalent for v in verdicts] == [True, True, True, False]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"equivalence_margin": 0.0}, "expected above 0: a smaller net gain"),
        ({"equivalence_margin": math.nan}, "above 0"),
        ({"price_points_per_percent": math.nan}, "0 or more"),
        ({"interim_analyses": (2, 1)}, "increasing numbers of seeds"),
        ({"interim_analyses": (0, 1)}, "increasing numbers of seeds"),
        (
            {"interim_analyses": (1, 3), "seeds": (0, 1)},
            "last interim analysis comes after 3 seeds, but the rule names 2",
        ),
        ({"alpha_spending": "all"}, "expected obrien_fleming or pocock"),
        ({"priced_by": "guess"}, "expected stopwatch or trials"),
        ({"price_of": "magic"}, "expected training or inference, or both with weights above 0"),
        ({"price_of": (("training", 0.5), ("inference", 0.2))}, "add up to 0.7; expected 1"),
        ({"price_of": "inference", "priced_by": "trials"}, "prices inference by trials"),
        ({"price_half_width": 0.0}, "price_half_width is 0.0; expected more than 0"),
        ({"stopwatch_s": math.nan}, "stopwatch_s is nan"),
        ({"order": ("a", "b")}, "each once; rank all of them"),
        ({"order_by": "taste"}, "order_by is 'taste'; expected 'screening' or nothing"),
        ({"order": SITES, "order_by": "screening"}, "an order and an order_by; name one of them"),
        ({"arms": (("none",),)}, "an arm is a level per site"),
        ({"treatments": ("window", "window")}, "compares 'window' with itself"),
        ({"treatments": ("window", "magic/lowrank@2")}, "names the bias 'magic/lowrank@2'"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(changes, sentence):
    with pytest.raises(AnalysisError, match=sentence):
        replace(RULE, **changes)


def test_a_rule_with_arms_and_levels_survives_json():
    design = fraction([Factor(site) for site in SITES], 1)
    rule = replace(
        RULE,
        arms=design.arms,
        treatments=("window", "window/lowrank@16", "window:8"),
        interim_analyses=(1, 2),
        price_of=(("training", 0.25), ("inference", 0.75)),
    )
    assert DecisionRule.from_dict(rule.to_dict()) == rule


@pytest.mark.parametrize("field", ["treatment", "more_treatments", "margin", "looks", "spending"])
def test_a_rule_of_version_0_1_0_is_refused(field):
    with pytest.raises(
        AnalysisError, match=r"the rule was written by Biaswise 0\.1\.0; read it with .* da22db2"
    ):
        DecisionRule.from_dict(RULE.to_dict() | {field: "window"})
