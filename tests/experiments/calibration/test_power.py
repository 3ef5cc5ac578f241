"""What a study can find, by formula: against the noncentral t, the published table, and laws."""

import re
from dataclasses import replace

import pytest
from scipy.stats import nct, t

from experiments.calibration.planning.power import DEMO_NOISE, ErrorSources, Power, expected_sources
from experiments.calibration.planning.study_size import other_designs, other_seeds, size_of
from experiments.recipes.registry import recipe
from experiments.storage.study_folder import StudyError
from experiments.study.preflight.checks import check_power
from pipeline.storage.paths import ROOT

DEMO = size_of(recipe("demo"))


def sized(size, seeds):
    return replace(size, interim_analyses=(seeds,))


def test_power_by_one_mean_square_is_that_of_the_noncentral_t():
    size = sized(DEMO, 1)
    error = 2 * 0.3 / size.trials**0.5
    bound = t.isf(0.05 / 3 / 2, size.residual_df)
    study = Power(size, ErrorSources(0.3))
    for gain in (0.1, 0.5, 1.0):
        exact = nct.sf(bound, size.residual_df, gain / error)
        assert study.difference(gain) == pytest.approx(exact, abs=3e-3)


def test_two_mean_squares_have_fewer_degrees_of_freedom_than_their_sum():
    """With two seeds three contrasts tell what varies from seed to seed; they must not count for eight."""
    size = sized(DEMO, 2)
    error = 2 * 0.3 / size.trials**0.5
    gain = 4 * error
    few, all_of_them = (nct.sf(t.isf(0.05 / 3 / 2, df), df, 4) for df in (3, size.residual_df))
    assert few < Power(size, ErrorSources(0.3)).difference(gain) < all_of_them


def test_found_gains_have_the_power_that_they_are_found_with():
    study = Power(DEMO, ErrorSources(0.3, scenes=0.05, price=0.02))
    for power in (0.5, 0.8, 0.9):
        assert study.difference(study.smallest_gain(power)) == pytest.approx(power, abs=1e-4)


def test_every_source_of_error_costs_power():
    plain = ErrorSources(0.3)
    for worse in (ErrorSources(0.4), ErrorSources(0.3, scenes=0.3), ErrorSources(0.3, price=0.3)):
        assert Power(DEMO, worse).difference(0.5) < Power(DEMO, plain).difference(0.5)
        assert Power(DEMO, worse).equivalence() < Power(DEMO, plain).equivalence()


def test_other_sizes_have_at_least_the_trials_of_the_study():
    waves = size_of(recipe("r50_waves"))
    assert [size.seeds for size in other_seeds(waves)] == [2, 8]
    others = other_designs(waves)
    assert {size.design for size in others} == {"one at a time", "full grid", "fraction"}
    assert all(waves.trials <= size.trials < waves.trials + len(size.arms) for size in others)
    assert waves.design == "fraction"


def test_a_study_that_decides_nothing_is_refused_unless_told_to():
    demo = recipe("demo")
    check_power(demo)
    half = replace(demo, trials=demo.trials[:8], rule=replace(demo.rule, seeds=(0,), equivalence_margin=0.01))
    with pytest.raises(StudyError, match=r"find a net gain of the margin, 0.01 points, with \d+ %"):
        check_power(half)
    check_power(replace(half, underpowered=True))
    single = replace(recipe("smoke"), underpowered=False)
    with pytest.raises(StudyError, match="leave no degree of freedom"):
        check_power(single)


def test_arms_that_cannot_tell_sites_apart_are_refused_for_that():
    """More seeds would not help: both sites always change together."""
    made = recipe("demo_waves")
    together = [one for one in made.trials if len({str(one.plan[site]) for site in made.sites}) == 1]
    rule = replace(made.rule, arms=())
    made = replace(made, trials=tuple(together), design=None, rule=rule, early_stopping=None)
    with pytest.raises(StudyError, match=r"cannot tell the sites apart.*Give it arms in which"):
        check_power(made)


def test_the_assumed_noise_is_that_of_the_demo():
    report = (ROOT / "docs/studies/demo/version_0.1/report.md").read_text(encoding="utf-8")
    measured = re.search(r"One trial's noise is ([\d.]+) points", report)
    assert measured, "docs/studies/demo/version_0.1/report.md does not say the noise of one trial"
    assert f"{DEMO_NOISE:.2f}" == measured[1], "docs/studies/demo was made anew: change DEMO_NOISE"


def test_a_rule_that_is_priced_by_trials_expects_a_vague_price():
    by_trials = replace(DEMO, rule=replace(DEMO.rule, priced_by="trials"))
    free = replace(DEMO, rule=replace(DEMO.rule, price_points_per_percent=0.0))
    assert expected_sources(by_trials).price > 10 * expected_sources(DEMO).price > 0
    assert expected_sources(free).price == 0
