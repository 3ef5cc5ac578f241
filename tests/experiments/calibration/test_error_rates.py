"""A small calibration: rates against binomial bounds that a right procedure misses once in a thousand."""

from dataclasses import replace

import pytest
from scipy.stats import binom

from experiments.calibration.design_efficiency import by_size, design_efficiency
from experiments.calibration.error_rates import (
    LEAN,
    ORDERED,
    SCREENED,
    SITES,
    Scenario,
    Study,
    calibrate_scenario,
    scenarios,
    with_interval,
)
from experiments.calibration.findings import Findings, criteria
from experiments.calibration.report import PROSE, write_findings
from experiments.calibration.simulation import Surface
from experiments.recipes.factorial import Factor, full
from pipeline.metrics.versions import commit
from pipeline.storage.paths import ROOT

STUDIES = 120
PLANTED = {scenario.name: scenario for scenario in scenarios()}
RARE = 0.001


def most(rate, total=STUDIES):
    return binom.ppf(1 - RARE, total, rate)


def least(rate, total=STUDIES):
    return binom.ppf(RARE, total, rate)


@pytest.mark.parametrize("name", ["no effect", "heavy tails, no effect", "early stopping, no effect"])
def test_without_effects_false_verdicts_are_rare(name):
    tally = calibrate_scenario(PLANTED[name], STUDIES)
    assert tally.counts["false PAYS"] <= most(0.05)
    assert tally.counts["false COSTS"] <= most(0.05)
    assert tally.refused == 0


def test_looking_often_does_not_make_false_verdicts():
    """Ten looks, each at the whole level, would err in about 19 per cent of the studies."""
    studies, looks = 250, tuple(range(4, 41, 4))
    often = Study("peeking", SITES[:1], full([Factor(SITES[0])]).arms, looks)
    nothing = Surface({SITES[0]: 0.0}, scenes=1)
    tally = calibrate_scenario(Scenario("peeking", nothing, often), studies)
    wrong = tally.counts["false PAYS"] + tally.counts["false COSTS"]
    assert least(0.03, studies) <= wrong <= most(0.05, studies)


@pytest.mark.parametrize("name", ["one layer", "a collapsed run, one layer", "a diverged run, one layer"])
def test_a_layer_of_twice_the_noise_is_found_and_intervals_hold(name):
    tally = calibrate_scenario(PLANTED[name], STUDIES)
    assert tally.counts["found"] >= least(0.90)
    # six intervals of a study share their noise: bounds as if only two of them were independent
    assert least(0.93, 2 * STUDIES) <= tally.covered / 3 <= most(0.97, 2 * STUDIES)


def test_equivalence_is_rarely_accepted_at_the_margin():
    at_margin = replace(PLANTED["every gain at the margin"], study=replace(LEAN, interim_analyses=(4,)))
    tally = calibrate_scenario(at_margin, STUDIES)
    assert 0 < tally.counts["false equivalence"] <= most(0.05)


def test_the_lean_study_names_what_the_grid_names_and_tables_say_so(tmp_path):
    agreements = design_efficiency((2.0, 4.0), 0.95, 40)
    of = {found.study: found.tally for found in agreements}
    assert of[LEAN].trials == of[ORDERED].trials == 40 * 192 // 6
    assert of[SCREENED].trials == 40 * 192 // 12
    for study in (LEAN, ORDERED):
        assert of[study].counts["agrees"] >= least(0.95, 40)
    # a screening that knows the gains gives them more of the error probability
    assert of[ORDERED].counts["missed PAYS"] <= of[LEAN].counts["missed PAYS"]
    few = {name: calibrate_scenario(planted, 2) for name, planted in PLANTED.items()}
    tallies = tuple((PLANTED[name], tally) for name, tally in few.items())
    findings = Findings(2, tallies, agreements, tuple(by_size((1.0,), 2, 3)), 1.0)
    text = write_findings(findings, tmp_path).read_text(encoding="utf-8")
    assert all(line.what in text for line in criteria(findings))
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    assert max(map(len, prose)) <= 100
    assert "`biaswise calibrate --studies 2`" in text
    assert f"commit {commit()}" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        *("README.md", "rates.svg", "sizes.svg"),
        *("scenarios.csv", "design_efficiency.csv", "sizes.csv"),
    }


@pytest.mark.parametrize("part", PROSE)
def test_the_readme_of_the_project_says_what_the_generator_says(part):
    assert PROSE[part] in (ROOT / "docs/studies/calibration/README.md").read_text(encoding="utf-8")


def test_intervals_of_rates_are_those_of_the_book():
    # Clopper and Pearson: 0 of 10 up to 1 - 0.025 ** 0.1
    assert with_interval(0, 10) == pytest.approx((0, 0, 1 - 0.025**0.1))
    assert with_interval(10, 10) == pytest.approx((1, 0.025**0.1, 1))
