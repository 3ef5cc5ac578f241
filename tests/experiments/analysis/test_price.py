"""The price of a study: whose times count, what the fixed price is charged to, what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest

from experiments.analysis.decide import weigh
from experiments.analysis.verdicts import UNDECIDED
from experiments.recipes.decision_rule import AnalysisError
from pipeline.metrics.rows import select
from tests.experiments.planted_rows import Truth, plant, plant_times, window_rule

SITES = tuple(f"decoder.{layer}.cross" for layer in range(3))
TRUE = {"fixed": 0.30, SITES[0]: 0.00, SITES[1]: 0.02, SITES[2]: 0.05}
RULE = window_rule(sites=SITES)
BY_TRIALS = replace(RULE, priced_by="trials")


def trials(fixed_percent=0.0, **changes):
    """Rows of trials; every plan with a bias takes ``fixed_percent`` longer."""
    rows = plant(
        Truth(dict.fromkeys(SITES, 1.0), time_noise_percent=changes.pop("time_noise", 0.5), **changes)
    )
    grown = 1 + fixed_percent / 100
    return [
        replace(row, value=row.value * grown) if row.metric == "step_ms" and "=window" in row.plan else row
        for row in rows
    ]


def stopwatch(**changes):
    settings = {"rounds": 10, "noise": 0.005} | changes
    inference = {name: cost / 2 for name, cost in TRUE.items()}
    return plant_times(TRUE, **settings) + plant_times(
        inference, metric="stopwatch/inference_own", **settings
    )


def test_a_site_is_charged_its_own_price_and_the_fixed_price_stands_apart():
    evidence = weigh(trials(), RULE, stopwatch(noise=0.0))
    own = [math.expm1(TRUE[site]) for site in SITES]
    assert [v.slowdown_percent / 100 for v in evidence.verdicts] == pytest.approx(own)
    assert [v.price / 10 for v in evidence.verdicts] == pytest.approx(own)
    assert evidence.price.percent[0] == pytest.approx(100 * math.expm1(0.30))


def test_the_times_of_trials_do_not_count_beside_a_stopwatch():
    slow = [replace(row, value=3 * row.value) if row.metric == "step_ms" else row for row in trials()]
    timed = stopwatch()
    assert weigh(slow, RULE, timed).verdicts == weigh(trials(), RULE, timed).verdicts


def test_what_is_priced_is_the_rules_choice_and_both_are_shown():
    timed = stopwatch(noise=0.0)
    training = weigh(trials(), RULE, timed)
    inference = weigh(trials(), replace(RULE, price_of="inference"), timed)
    both = weigh(trials(), replace(RULE, price_of=(("training", 0.5), ("inference", 0.5))), timed)
    np.testing.assert_allclose(inference.price.effect, training.price.effect / 2, atol=1e-9)
    np.testing.assert_allclose(both.price.effect, 0.75 * training.price.effect, atol=1e-9)
    for evidence in (training, inference, both):
        assert list(evidence.price_by_step) == ["training", "inference"]


def test_the_times_of_trials_have_a_fixed_price_too():
    """Without it (0.2.0) a quarter of 30 % of a step was charged to every layer of a 2^3 grid."""
    evidence = weigh(trials(fixed_percent=30, time_noise=0.1), BY_TRIALS)
    assert evidence.price.percent[0] == pytest.approx(30, abs=0.5)
    assert [v.slowdown_percent for v in evidence.verdicts] == pytest.approx([0, 0, 0], abs=0.5)
    alone = plant(Truth({SITES[0]: 1.0}, {SITES[0]: 30.0}, time_noise_percent=0.1))
    only = weigh(alone, window_rule(priced_by="trials"))
    assert not only.price.fixed_apart
    assert only.verdicts[0].slowdown_percent == pytest.approx(30, abs=0.5)


def test_the_price_by_trials_is_as_wrong_as_it_says():
    """Its standard errors are those of least squares, seeds and the fixed price taken out."""
    found = [
        weigh(plant(Truth(dict.fromkeys(SITES, 0.0), time_noise_percent=5), d), BY_TRIALS).price
        for d in range(60)
    ]
    effects = np.array([price.effect for price in found])
    errors = np.sqrt(np.mean([price.error**2 for price in found], axis=0))
    np.testing.assert_allclose(effects.std(axis=0), errors, rtol=0.3)


def test_without_a_stopwatch_gains_are_told_and_no_verdict():
    evidence = weigh(trials(), RULE)
    assert [v.verdict for v in evidence.verdicts] == [UNDECIDED] * 3
    assert all(math.isnan(v.net) and math.isfinite(v.effect) for v in evidence.verdicts)
    assert not evidence.settled
    said = "The price is not measured, so nothing is weighed: `biaswise study time planted` measures it."
    assert said in evidence.notes


def test_a_rule_without_a_price_needs_no_times():
    rows = [row for row in trials() if row.metric != "step_ms"]
    evidence = weigh(rows, replace(RULE, price_points_per_percent=0.0))
    assert [v.price for v in evidence.verdicts] == [0, 0, 0]


def two_sites(rows):
    return [row for row in rows if f"{SITES[2]}=window" not in row.plan]


@pytest.mark.parametrize(
    ("timed", "sentence"),
    [
        (
            [replace(row, device="H200") for row in stopwatch()],
            "the stopwatch ran with device H200 and the trials",
        ),
        ([replace(row, recipe_digest="a") for row in stopwatch()], "ran with recipe_digest a and the trials"),
        (stopwatch(rounds=2), "has 2 complete rounds"),
        (two_sites(stopwatch()), "timed 2 of the study's 3 biases"),
    ],
)
def test_times_of_other_circumstances_are_refused(timed, sentence):
    with pytest.raises(AnalysisError, match=sentence):
        weigh(trials(), RULE, timed)


def test_a_stopwatch_of_another_commit_is_said():
    timed = [replace(row, commit="abc") for row in stopwatch()]
    assert "The stopwatch ran at commit abc, the trials at another." in weigh(trials(), RULE, timed).notes


def test_the_step_that_is_not_priced_may_lack_a_price():
    timed = [row for row in stopwatch() if row.metric != "stopwatch/inference_own" or row.step < 2]
    evidence = weigh(trials(), RULE, timed)
    assert list(evidence.price_by_step) == ["training"]
    assert any(note.startswith("No price of inference: the stopwatch has 2") for note in evidence.notes)


def test_trials_that_differ_in_nothing_but_a_missing_time_are_refused():
    rows = [row for row in trials() if not (row.metric == "step_ms" and row.trial == "w010-s1")]
    assert len(list(select(rows, metric="step_ms"))) == 15
    with pytest.raises(AnalysisError, match="step_ms is missing or not positive in w010-s1"):
        weigh(rows, BY_TRIALS)
