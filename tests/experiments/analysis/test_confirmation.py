"""Confirmation: means and paired gains on fresh seeds; the seeds that chose the plan confirm nothing."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import nct, t

from experiments.analysis.confirmation import FOLDER, Prior
from experiments.analysis.confirmation import confirm as compare
from experiments.analysis.decide import weigh
from experiments.reporting.markdown import to_markdown
from experiments.reporting.summary import summarize
from pipeline.metrics.rows import append_rows, read_study, select
from tests.experiments.planted_rows import Truth, plant, window_rule

GOLDEN = Path(__file__).parents[2] / "golden" / "report"
NONE, BEST = ("none", "none"), ("window", "window")
POINTS = {NONE: (40.0, 41.0, 41.5), BEST: (42.1, 43.5, 43.4)}


@pytest.fixture
def golden(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


def confirm(folder, seeds=(7, 8, 9), **change):
    """Run none and the recommended plan again, on other seeds."""
    rows = read_study(folder)
    for like, levels in (("w00-s0", NONE), ("w11-s0", BEST)):
        for seed, points in zip(seeds, POINTS[levels], strict=True):
            name = f"{like[:3]}-s{seed}"
            (accuracy,) = select(rows, trial=like, metric="NDS", condition="clean")
            (speed,) = select(rows, trial=like, metric="train_samples_per_s")
            shared = {"trial": name, "seed": seed, **change}
            measured = [replace(accuracy, value=points / 100, **shared), replace(speed, **shared)]
            append_rows(folder / FOLDER / "trials" / name / "rows.jsonl", measured)


def test_plans_are_compared_on_the_seeds_that_both_have(golden):
    confirm(golden)
    summary = summarize(golden)
    best, none = summary.confirmed
    assert (best.levels, none.levels) == (BEST, NONE)
    assert (best.accuracy, none.accuracy) == pytest.approx((43.0, 122.5 / 3))
    assert (best.seeds, math.isnan(none.gain)) == (3, True)
    evidence = summary.evidence
    differences = np.subtract(POINTS[BEST], POINTS[NONE])
    df = evidence.residual_df + 2
    squared = (evidence.residual_df * 2 * evidence.noise**2 + 2 * differences.var(ddof=1)) / df
    half = t.ppf(0.975, df) * np.sqrt(squared / 3)
    assert (best.low, best.high) == pytest.approx((best.gain - half, best.gain + half))
    assert best.gain == pytest.approx(np.mean(POINTS[BEST]) - np.mean(POINTS[NONE]))
    text = to_markdown(summary)
    assert "Confirmed on fresh seeds: 43.00 NDS and 9.74 samples/s, +2.17 [" in text
    assert "## Confirmation on fresh seeds" in text


def test_it_may_have_a_recipe_of_its_own(golden):
    confirm(golden, recipe_digest="0123456789ab")
    assert len(summarize(golden).confirmed) == 2


def test_the_verdicts_do_not_move(golden):
    before = summarize(golden).evidence
    confirm(golden)
    assert summarize(golden).evidence == before


def test_a_diverged_seed_is_no_pair(golden):
    confirm(golden)
    lost = golden / FOLDER / "trials" / "w11-s8" / "rows.jsonl"
    rows = [replace(row, value=math.nan) for row in read_study(golden / FOLDER) if row.trial == "w11-s8"]
    lost.unlink()
    append_rows(lost, rows)
    (best, _) = summarize(golden).confirmed
    assert best.seeds == 2
    assert best.gain == pytest.approx((2.1 + 1.9) / 2)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"seeds": (0, 8, 9)}, "seed 0 of the confirmation is one of those that chose the plan"),
        ({"commit": "fedcba987654"}, "the trials differ in commit"),
    ],
)
def test_what_confirms_nothing_is_left_out_and_said(golden, given, reason):
    confirm(golden, **given)
    summary = summarize(golden)
    assert summary.confirmed == ()
    assert f"The confirmation is left out: {reason}" in summary.notes[-1]
    assert summary.evidence is not None


SITES = ("decoder.0.cross", "decoder.1.cross")
STUDIES = 400


@pytest.fixture(scope="module")
def study():
    """A study of trials with a noise of one point; 17 degrees of freedom estimated it."""
    truth = Truth(dict.fromkeys(SITES, 0.0), seeds=(0, 1, 2), noise=1.0)
    rule = window_rule(sites=SITES, seeds=truth.seeds, price_points_per_percent=0)
    return replace(weigh(plant(truth), rule), residual_df=17)


def share_confirmed(study, gain, seeds=(100, 101)):
    """The share of confirmations that find a gain above 0, the study's noise drawn anew each time."""
    rng = np.random.default_rng(1)
    found = 0
    for draw in range(STUDIES):
        known = replace(study, noise=math.sqrt(rng.chisquare(17) / 17))
        truth = Truth({SITES[0]: gain, SITES[1]: 0.0}, seeds=seeds, noise=1.0)
        (best,) = (c for c in compare(plant(truth, draw), known) if c.levels == ("window", "none"))
        found += best.low > 0
    return found / STUDIES


@pytest.mark.parametrize(("gain", "least"), [(7.0, 0.99), (2.0, 0.40)])
def test_two_fresh_seeds_confirm_as_often_as_the_noise_allows(study, gain, least):
    """A gain has the standard error of one trial, and Student's t has 17 + 1 degrees of freedom."""
    expected = nct.sf(t.ppf(0.975, 18), 18, gain)
    error = math.sqrt(expected * (1 - expected) / STUDIES)
    share = share_confirmed(study, gain)
    assert share == pytest.approx(expected, abs=3 * error + 1e-3)
    assert share >= least  # 42 and 13 % with the spread of the two seeds alone


def test_nothing_is_confirmed_as_often_as_the_confidence_says(study):
    assert share_confirmed(study, 0.0) == pytest.approx(0.025, abs=3 * math.sqrt(0.025 * 0.975 / STUDIES))


def test_one_fresh_seed_has_the_noise_of_the_study(study):
    (best, *_) = (c for c in compare(plant(Truth({SITES[0]: 3.0, SITES[1]: 0.0}, seeds=(9,))), study))
    half = t.ppf(0.975, 17) * study.noise * math.sqrt(2)
    assert (best.low, best.high) == pytest.approx((best.gain - half, best.gain + half))


def test_a_moderated_variance_is_the_mean_weighed_by_degrees_of_freedom():
    assert Prior(4.0, 3).moderated(8.0, 1) == (5.0, 4)
    assert Prior(4.0, 3).moderated(0.0, 0) == (4.0, 3)
