"""Waves: which trials come next, when a study ends, what its budget refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest

from experiments.analysis.decide import weigh
from experiments.calibration import truth as simulated
from experiments.calibration.designs import LEAN
from experiments.calibration.judging import judge_study
from experiments.calibration.simulation import train
from experiments.recipes.decision_rule import AnalysisError
from experiments.recipes.factorial import Factor, fraction
from experiments.study.next_wave import CONTINUE, SETTLED, SPENT, Budget, next_wave
from tests.experiments.planted_rows import Truth, plant, rows_of, window_rule

SITES = LEAN.sites
DESIGN = fraction([Factor(site) for site in SITES], 2)
RULE = replace(LEAN.rule(), seeds=(0, 1, 2), interim_analyses=(1, 2, 3))
PLENTY = Budget(trials=1000)


def study(gain, seeds, **changes):
    return rows_of(
        train(free_of_charge(gain, **changes), DESIGN.arms, seeds, np.random.default_rng(1)), SITES
    )


def free_of_charge(gain, **changes):
    truth = simulated.Truth(dict(zip(SITES, map(float, gain), strict=True)), scenes=6, times=None)
    return replace(truth, **changes)


def test_the_first_wave_is_every_arm_with_the_seeds_of_the_first_look():
    wave = next_wave([], replace(RULE, interim_analyses=(2, 3)), DESIGN, PLENTY)
    assert (wave.look, wave.state, wave.spent) == (1, CONTINUE, 0.0)
    assert wave.arms_by_seed == ((0, DESIGN.arms), (1, DESIGN.arms))
    assert wave.num_trials == 32


def test_unsettled_studies_go_on_and_end_with_the_seeds():
    one = next_wave(study((0,) * 6, (0,)), RULE, DESIGN, PLENTY)
    assert (one.look, one.state, one.arms_by_seed) == (2, CONTINUE, ((1, DESIGN.arms),))
    assert 0 < one.spent < 0.05  # O'Brien-Fleming spends little at a third of the trials
    noise = weigh(study((0,) * 6, (0,)), RULE).noise
    assert one.reason.startswith(f"Not all is settled after 1 seed (one trial's noise: {noise:.2f} points);")
    narrow = replace(RULE, equivalence_margin=0.05)
    last = next_wave(study((0,) * 6, (0, 1, 2)), narrow, DESIGN, PLENTY)
    assert (last.look, last.state, last.arms_by_seed, last.spent) == (3, SPENT, (), 1.0)


def test_a_study_is_settled_by_verdicts_and_by_equivalence():
    wave = next_wave(study((9, -9, 9, -9, 9, -9), (0,), scene_gain=0), RULE, DESIGN, PLENTY)
    assert (wave.state, wave.arms_by_seed) == (SETTLED, ())
    wide = replace(RULE, equivalence_margin=20.0)
    assert next_wave(study((0,) * 6, (0,)), wide, DESIGN, PLENTY).state == SETTLED


def test_a_wave_that_was_cut_short_is_completed():
    rows = [row for row in study((0,) * 6, (0,)) if not row.trial.startswith("w000000")]
    assert next_wave(rows, RULE, DESIGN, PLENTY).arms_by_seed == ((0, (DESIGN.baseline,)),)


def test_a_look_is_taken_when_its_last_trial_has_ended():
    """A report judges fifteen of sixteen trials of the second seed; the study still runs the last one."""
    rule = replace(RULE, equivalence_margin=6.0)
    rows = study((0,) * 6, (0, 1))
    cut = [row for row in rows if not row.trial.startswith("w000000-s1")]
    assert not weigh([row for row in rows if row.seed == 0], rule).settled
    evidence = weigh(cut, rule)
    assert (evidence.table.look, evidence.settled) == (2, True)
    wave = next_wave(cut, rule, DESIGN, PLENTY)
    assert (wave.state, wave.arms_by_seed) == (CONTINUE, ((1, (DESIGN.baseline,)),))


def test_budgets():
    with pytest.raises(
        AnalysisError, match=r"needs 16 trials in all, and the budget is 15; without a first look"
    ):
        next_wave([], RULE, DESIGN, Budget(15))
    rows = study((0,) * 6, (0,))
    assert next_wave(rows, RULE, DESIGN, Budget(31)).state == SPENT
    assert next_wave(rows, RULE, DESIGN, Budget(32)).state == CONTINUE
    over = next_wave(rows, RULE, DESIGN, Budget(100, gpu_hours=7), gpu_hours=4.0)
    assert over.state == SPENT
    assert "8.0 GPU hours" in over.reason
    # a first wave that was killed before any trial had rows
    assert next_wave([], RULE, DESIGN, Budget(100, gpu_hours=7), gpu_hours=1.0).state == CONTINUE
    with pytest.raises(AnalysisError, match=r"needs about 8\.0 GPU hours"):
        next_wave([], RULE, DESIGN, Budget(100, gpu_hours=7), gpu_hours=8.0)
    for trials, hours in ((0, 1.0), (5, 0.0), (5, math.nan)):
        with pytest.raises(AnalysisError, match="expected more than 0"):
            Budget(trials, hours)


def test_a_rule_without_seeds_is_refused():
    with pytest.raises(AnalysisError, match="names no seeds"):
        next_wave([], window_rule(), DESIGN, PLENTY)


def test_a_seed_that_diverged_costs_a_look_and_not_the_study():
    rows = study((0,) * 6, (0,), faults=simulated.Faults(lost_seed=0))
    assert next_wave(rows, RULE, DESIGN, PLENTY).arms_by_seed == ((1, DESIGN.arms),)
    with pytest.raises(AnalysisError, match="no trial has a finite NDS"):
        next_wave(rows, replace(RULE, interim_analyses=(1,)), DESIGN, PLENTY)


def test_rows_beyond_the_last_look_wait_for_the_next():
    rows = study((0,) * 6, (0, 1, 2))
    later = [row for row in rows if row.seed < 2 or row.trial.startswith("w000000")]
    evidence = weigh(later, RULE)
    assert (evidence.table.look, evidence.table.waiting) == (2, (2,))
    assert "seed 2" in " ".join(evidence.notes)
    sooner = weigh([row for row in later if row.seed < 2], RULE)
    assert evidence.verdicts == sooner.verdicts


def test_simulated_studies_go_the_way_of_rows():
    """The calibration judges arrays; the same trials as rows, wave by wave, give the same verdicts."""
    rule = LEAN.rule()
    for draw, gains in enumerate(((0,) * 6, (2, 0, -2, 0, 0, 0), (9, 9, 9, -9, -9, -9))):
        truth = free_of_charge(gains, faults=simulated.Faults(stopping=draw == 1))
        trained = train(truth, DESIGN.arms, rule.seeds, np.random.default_rng(draw))
        expected = judge_study(trained, DESIGN.arms, rule)
        every, rows = rows_of(trained, SITES), []
        while (wave := next_wave(rows, rule, DESIGN, PLENTY)).arms_by_seed:
            seeds = {seed for seed, _ in wave.arms_by_seed}
            rows += [row for row in every if row.seed in seeds]
        assert len({row.trial for row in rows}) == expected.trials
        for found, other in zip(weigh(rows, rule).verdicts, expected.verdicts, strict=True):
            assert (found.verdict, found.equivalent) == (other.verdict, other.equivalent)
            assert found.net_low == pytest.approx(other.net_low, abs=1e-9)
            assert found.low == pytest.approx(other.low, abs=1e-9)


def test_looking_at_the_same_rows_twice_says_the_same():
    rows = plant(Truth(dict.fromkeys(SITES[:2], 0.0), seeds=(0, 1, 2)))
    rule = window_rule(sites=SITES[:2], seeds=(0, 1, 2), interim_analyses=(2, 3))
    assert weigh(rows, rule) == weigh(list(reversed(rows)), rule)
