"""Confirmation: means and paired gains on fresh seeds; the seeds that chose the plan confirm nothing."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from experiments.analysis.confirmation import FOLDER
from experiments.reporting.markdown import to_markdown
from experiments.reporting.summary import summarize
from pipeline.metrics.rows import append_rows, read_study, select

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
    expected = ttest_rel(POINTS[BEST], POINTS[NONE]).confidence_interval(0.95)
    assert (best.low, best.high) == pytest.approx((expected.low, expected.high))
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
