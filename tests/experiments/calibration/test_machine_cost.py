"""What a study takes on other machines, added up by hand."""

from dataclasses import replace

import pytest

from experiments.calibration.planning import machine_cost
from experiments.calibration.planning.machine_cost import ARMS, PARTS, machine_costs
from experiments.recipes.cost import cost_of, speed_of
from experiments.recipes.mini import demo
from experiments.recipes.nuscenes import r50_waves
from experiments.recipes.registry import recipe

FRAMES, STEPS, LOADERS = 6019 * 5, 1758, 6


@pytest.fixture(autouse=True)
def without_data(monkeypatch, tmp_path):
    """No nuScenes is here, so its frames are those that are known."""
    monkeypatch.chdir(tmp_path)


def test_one_gpu_by_hand(monkeypatch):
    monkeypatch.setattr(machine_cost, "COHORT_STEP_S", {})
    speed, (trunk, own) = speed_of(r50_waves().trials[0]), PARTS["voxel0100_r50_800x320"]
    (one, *_), cost = machine_costs(r50_waves()), cost_of(r50_waves())
    load = 16 * speed.load_s / LOADERS  # of the 16 frames of a step; longer than 4 times a step of 4
    assert load > 4 * speed.step_s
    alone = speed.start_s + STEPS * load + FRAMES * speed.frame_s
    assert one.alone == pytest.approx([trials * alone / 3600 for trials in cost.trials])
    together = speed.start_s + STEPS * 4 * (trunk + ARMS * own)
    shared = together / ARMS + FRAMES * speed.frame_s
    assert one.in_cohorts == pytest.approx([trials * shared / 3600 for trials in cost.trials])
    assert one.dollars((2, 3), 4.0) == (8.0, 12.0)


def test_eight_gpus_are_what_the_recipe_itself_computes():
    (_, eight, other) = machine_costs(r50_waves())
    assert eight.alone == pytest.approx(cost_of(r50_waves()).hours, rel=0.02)  # less the stopwatch
    assert other.in_cohorts[0] > 2 * eight.in_cohorts[0]
    assert eight.dollars((1, 1), 2.0) == (16.0, 16.0)


def test_a_measured_cohort_counts(monkeypatch):
    monkeypatch.setattr(machine_cost, "COHORT_STEP_S", {})
    (before, *_) = machine_costs(r50_waves())
    monkeypatch.setitem(machine_cost.COHORT_STEP_S, "voxel0100_r50_800x320", (ARMS, 0.5))
    (now, *_) = machine_costs(r50_waves())
    trunk, own = PARTS["voxel0100_r50_800x320"]
    saved = STEPS * 4 * (trunk + ARMS * own - 0.5) / ARMS / 3600
    trials = cost_of(r50_waves()).trials[0]
    assert now.in_cohorts[0] == pytest.approx(before.in_cohorts[0] - trials * saved)
    assert now.alone == before.alone


def test_nothing_is_said_of_a_study_on_a_cpu():
    assert machine_costs(demo()) == []


def test_a_machine_whose_gpus_do_not_divide_the_frames_of_a_step_is_left_out():
    """A step of this study has four frames, which eight GPUs cannot share."""
    assert [cost.machine.name for cost in machine_costs(recipe("r50_generated"))] == ["1 x H200"]


def test_a_cohort_holds_the_trials_of_one_seed_alone():
    made = r50_waves()
    few = replace(
        made, trials=made.trials[:7], design=None, rule=None, confirmation_seeds=(), early_stopping=None
    )
    assert [cost.arms for cost in machine_costs(few)] == [7, 7, 7]
    assert [cost.arms for cost in machine_costs(made)] == [ARMS] * 3
