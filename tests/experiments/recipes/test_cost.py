"""Hours, GPU hours and GB of a study: those of its parts added up by hand."""

from dataclasses import replace

import pytest

from experiments.recipes.cost import cost_of, hours_of_trial, speed_of, takes
from experiments.recipes.mini import demo, demo_waves, pretrain
from experiments.recipes.nuscenes import r50_waves, vov_waves
from pipeline.storage.paths import ROOT


def test_the_demo_by_hand():
    cost, speed = cost_of(demo()), speed_of(demo().trials[0])
    step_s = speed.step_s + 2 * speed.load_s  # the training process loads its two samples itself
    trial_s = speed.start_s + 40 * step_s + 40 * 5 * speed.frame_s  # 40 frames, five conditions
    assert cost.hours == (cost.hours[0],) * 2
    assert cost.hours[0] == pytest.approx((16 * trial_s / 2 + 100) / 3600)  # two at once; the stopwatch
    assert (cost.trials, cost.gpu_hours, cost.gpus) == ((16, 16), (0, 0), 0)
    assert takes(demo()) == f"16 trials, {cost.hours[0]:.2g} h, 0.37 GB, 2 CPU cores"


def test_waves_cost_from_their_first_look_to_their_last():
    assert cost_of(demo_waves()).trials == (2 * 8 + 6, 8 * 8 + 6)


def test_loading_bounds_a_step_that_is_shorter(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    first = r50_waves().trials[0]
    speed = speed_of(first)
    assert first.train.batch_size * speed.load_s / 6 > speed.step_s
    hours, unit, source = hours_of_trial(r50_waves())
    per_step = first.train.batch_size * speed.load_s / 6
    seconds = speed.start_s + 1758 * per_step + 6019 * 5 / 8 * speed.frame_s
    assert (hours, unit) == (pytest.approx(8 * seconds / 3600), "GPU hours")
    assert source.startswith("GPU hours: computed, as no trial has run; from one H200")
    more = replace(first, data=replace(first.data, num_loader_workers=12))
    faster = replace(
        r50_waves(), trials=(more,), design=None, rule=None, early_stopping=None, confirmation_seeds=()
    )
    assert hours_of_trial(faster)[0] == pytest.approx(hours - 8 * 1758 * (per_step - speed.step_s) / 3600)


def test_nothing_is_computed_where_nothing_was_measured():
    assert cost_of(pretrain()) is None, "its branches train, too"
    other = replace(demo().trials[0], config="my_config.py")
    assert cost_of(replace(demo(), trials=(other,), rule=None)) is None
    assert takes(pretrain()) == pretrain().cost


VOV = "experiments/configs/cmt_aqr_voxel0075_vov_1600x640_cbgs.py"


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ("pts_bbox_head=dict(bias_config=dict(window_lidar=9))", True),
        ("image_size=(320, 800)", False),
        ("pts_bbox_head=dict(num_query=1200)", False),
    ],
)
def test_a_config_of_ones_own_is_as_fast_as_the_shipped_one_of_its_sizes(tmp_path, changes, known):
    config = tmp_path / "mine.py"
    config.write_text(f'_base_ = ["{ROOT / VOV}"]\nmodel = dict({changes})\n')
    first = vov_waves().trials[0]
    speed, mine = speed_of(first), speed_of(replace(first, config=str(config)))
    assert mine == (replace(speed, source=f"{speed.source}, as for {(ROOT / VOV).stem}") if known else None)


def test_gpus_are_told_once_and_as_they_are():
    spread = r50_waves().with_workers(1)
    assert "on 1 GPU," in takes(spread)
    assert "8 GPUs" not in takes(spread)
