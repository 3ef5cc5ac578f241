"""A small calibration: rates against binomial bounds that a right procedure misses once in a thousand."""

import numpy as np
import pytest
from scipy.stats import binom

from experiments.calibration.design_efficiency import by_size, design_efficiency
from experiments.calibration.designs import LARGE, LEAN, ORDERED, SCREENED, SITES, SMALL, Study
from experiments.calibration.error_rates import Tally, calibrate_scenario, with_interval
from experiments.calibration.findings import Findings, criteria
from experiments.calibration.planning.power import ErrorSources, Power
from experiments.calibration.planning.study_size import StudySize, size_of
from experiments.calibration.prose import PROSE
from experiments.calibration.report import write_findings
from experiments.calibration.scenarios import NOMINAL, Scenario, scenarios
from experiments.calibration.simulated_power import compare_power
from experiments.calibration.truth import Truth
from experiments.recipes.factorial import Factor, full
from experiments.recipes.registry import recipe
from pipeline.metrics.versions import commit
from pipeline.storage.paths import ROOT

STUDIES = 80
PLANTED = {(scenario.name, len(scenario.study.sites)): scenario for scenario in scenarios()}
RARE = 0.001


def most(rate, total=STUDIES):
    return binom.ppf(1 - RARE, total, rate)


def least(rate, total=STUDIES):
    return binom.ppf(RARE, total, rate)


def test_no_two_planted_truths_have_the_same_name():
    assert len(PLANTED) == len(scenarios())


@pytest.mark.parametrize(
    ("name", "layers", "limit"),
    [
        ("no effect", 3, 0.05),
        ("heavy tails (t3)", 6, 0.05),
        ("early stopping", 6, 0.05),
        ("half the layers at the margin", 3, 0.05),
        ("seed x site 1", 3, 0.07),
        ("seed x site 1", 6, 0.07),
        ("priced by trials, drift 10 %", 3, 0.07),
        ("priced by trials, alternating slots, one 15 % slower", 3, 0.07),
        ("screening, correlation 1", 6, 0.07),
    ],
)
def test_false_claims_are_as_rare_as_promised(name, layers, limit):
    tally = calibrate_scenario(PLANTED[name, layers], STUDIES)
    assert tally.counts["any false claim"] <= most(limit)
    assert tally.refused == 0


@pytest.mark.parametrize("layers", [3, 6])
def test_a_bias_that_loses_by_collapses_is_not_told_to_pay(layers):
    tally = calibrate_scenario(PLANTED["a bias that collapses 1 in 8", layers], STUDIES)
    assert tally.counts["false PAYS"] <= most(0.05)


@pytest.mark.parametrize("name", ["fixed price 10 %, one layer gains", "fixed price 25 %, one layer gains"])
@pytest.mark.parametrize("layers", [3, 6])
def test_a_fixed_price_is_not_forgotten_in_the_plan(name, layers):
    tally = calibrate_scenario(PLANTED[name, layers], STUDIES)
    assert tally.counts["settled plan worse"] <= most(0.05)


def test_looking_often_does_not_make_false_verdicts():
    """Ten looks, each at the whole level, would err in about 19 per cent of the studies."""
    studies, looks = 150, tuple(range(4, 41, 4))
    often = Study("peeking", SITES[:1], full([Factor(SITES[0])]).arms, looks, priced_by="", margin=1.0)
    nothing = Truth({SITES[0]: 0.0}, times=None)
    tally = calibrate_scenario(Scenario("peeking", NOMINAL, nothing, often), studies)
    wrong = tally.counts["false PAYS"] + tally.counts["false COSTS"]
    assert least(0.03, studies) <= wrong <= most(0.05, studies)


def power_of(study, seeds):
    """The computed power for a layer of two noises, the price known."""
    rule = study.rule()
    return Power(StudySize(study.name, rule, study.arms, (seeds,)), ErrorSources(1.0)).difference(2.0)


@pytest.mark.parametrize("study", [SMALL, LARGE], ids=["3", "6"])
def test_a_layer_of_twice_the_noise_is_found_as_often_as_computed_and_intervals_hold(study):
    layers = len(study.sites)
    tally = calibrate_scenario(PLANTED["one layer pays", layers], STUDIES)
    power = power_of(study, 2)
    assert least(power - 0.03) <= tally.counts["found"] <= most(power + 0.03)
    # the intervals of a study share their noise: bounds as if only two of them were independent
    assert least(0.93, 2 * STUDIES) <= 2 * tally.covered / layers


@pytest.mark.parametrize("study", [SMALL, LARGE], ids=["3", "6"])
@pytest.mark.parametrize("name", ["two collapsed, one layer pays", "three collapsed, one layer pays"])
def test_collapses_cost_less_than_a_whole_seed(name, study):
    tally = calibrate_scenario(PLANTED[name, len(study.sites)], STUDIES)
    assert tally.counts["found"] >= least(power_of(study, 1))


def test_a_stopped_collapse_costs_less_than_a_whole_seed():
    tally = calibrate_scenario(PLANTED["a collapse is stopped, one layer pays", 6], STUDIES)
    assert tally.counts["found"] >= least(power_of(LARGE, 1))


def test_computed_power_of_the_demo_is_the_simulated_one():
    """Within 3 points, and what chance does to 250 studies."""
    rule = size_of(recipe("demo")).rule
    assert (rule.arms or SMALL.arms) == SMALL.arms
    assert len(rule.seeds) == SMALL.interim_analyses[-1]
    (one,) = compare_power(250, [SMALL], [2.0])
    _, low, high = one.simulated
    assert low - 0.03 < one.computed < high + 0.03


def test_the_lean_study_names_what_the_grid_names_and_tables_say_so(tmp_path):
    agreements = design_efficiency((2.0, 4.0), 0.95, 40)
    of = {found.study: found.tally for found in agreements}
    assert of[LEAN].trials == of[ORDERED].trials == 40 * 192 // 6
    assert of[SCREENED].trials == 40 * 192 // 12
    for study in (LEAN, ORDERED):
        assert of[study].counts["agrees"] >= least(0.95, 40)
    # a screening that knows the gains gives them more of the error probability
    assert of[ORDERED].counts["missed PAYS"] <= of[LEAN].counts["missed PAYS"]
    few = tuple((scenario, calibrate_scenario(scenario, 2)) for scenario in scenarios()[::5])
    foretold = compare_power(2, [SMALL], [2.0])
    findings = Findings(2, few, agreements, by_size(1.0, 2, 3), foretold, 1.0)
    text = write_findings(findings, tmp_path).read_text(encoding="utf-8")
    assert all(line.what in text for line in criteria(findings))
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    assert max(map(len, prose)) <= 100
    assert "`biaswise calibrate --studies 2`" in text
    assert f"commit {commit()}" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        *("README.md", "rates.svg", "sizes.svg"),
        *("scenarios.csv", "design_efficiency.csv", "sizes.csv", "power.csv"),
    }


def test_targets_name_the_conditions_that_miss_them():
    scenario = PLANTED["no effect", 3]
    wrong = Tally(studies=100, intervals=300, covered=285)
    wrong.counts["any false claim"] = 9
    lines = criteria(Findings(100, ((scenario, wrong),), (), (), (), 1.0))
    (claims,) = [line for line in lines if line.what == "any false claim, standard conditions"]
    assert not claims.met
    assert claims.found.startswith("0 of 1; missed: no effect, 3 layers 9.0 % (4.2 to 16.4)")


def test_true_net_gains_of_plans_hold_pairs_and_both_prices():
    truth = PLANTED["fixed price 10 %, one layer gains", 3].truth
    assert truth.plan_net(frozenset()) == 0
    gaining = list(truth.net)[1]
    alone = 3 + truth.site_price - (100 / 3) * np.expm1(0.12)
    assert truth.plan_net(frozenset([gaining])) == pytest.approx(alone)
    pair = PLANTED["two layers and their interaction", 3].truth
    both = frozenset(list(pair.net)[:2])
    one = [pair.plan_gain(frozenset([site])) for site in both]
    # the columns are centred: 2 x (1/4 - 1/4) together, 2 x (-1/4 - 1/4) each alone
    assert pair.plan_gain(both) - sum(one) == pytest.approx(2.0)


@pytest.mark.parametrize("part", PROSE)
def test_the_readme_of_the_project_says_what_the_generator_says(part):
    assert PROSE[part] in (ROOT / "docs/studies/calibration/README.md").read_text(encoding="utf-8")


def test_intervals_of_rates_are_those_of_the_book():
    # Clopper and Pearson: 0 of 10 up to 1 - 0.025 ** 0.1
    assert with_interval(0, 10) == pytest.approx((0, 0, 1 - 0.025**0.1))
    assert with_interval(10, 10) == pytest.approx((1, 0.025**0.1, 1))
