"""What a trial takes from its config, what its settings replace, and that the difference is said."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.config.plan import Plan
from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings
from pipeline.detector.precision import with_autocast
from pipeline.errors import TrialError
from pipeline.training.resolve_config import WARMUP, resolve_training

MINI = "experiments/configs/cmt_aqr_pillar_mini.py"
RUNNER = "experiments/configs/cmt_aqr_pillar_mini_runner.py"  # six epochs, cosine
FULL = "experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py"  # 20 epochs, one cycle, autocast
FRAMES = 41


def trial(config: str, device: str = "cpu", **train: object) -> TrialSettings:
    plan, data = Plan.of({"*": "none/sdpa_math"}), DataSettings(("data",), "data")
    return TrialSettings("test", config, plan, data, TrainSettings(**train), device=device)  # type: ignore[arg-type]


def test_the_config_says_how_long_and_how_fast() -> None:
    resolved = resolve_training(trial(RUNNER, steps=None, batch_size=4), FRAMES, workers=1)
    assert resolved.steps == resolved.settings.train.steps == 6 * 11  # 41 frames are 11 steps of 4
    assert resolved.differs == ()
    train_step = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = resolved.schedule(train_step)
    assert schedule is not None
    schedule.apply(33)
    assert train_step.param_groups[0]["lr"] == pytest.approx(0.5)  # half way down the cosine


def test_two_workers_take_half_the_steps() -> None:
    resolved = resolve_training(trial(RUNNER, steps=None, batch_size=4), FRAMES, workers=2)
    assert resolved.settings.train.steps == 6 * 6


def test_what_the_settings_say_holds_and_is_said() -> None:
    resolved = resolve_training(trial(RUNNER, steps=30, batch_size=2, warmup_steps=5), FRAMES, workers=1)
    assert resolved.steps == resolved.settings.train.steps == 30
    assert resolved.schedule(torch.optim.AdamW([nn.Parameter(torch.zeros(1))])) is None
    assert [sentence.partition(" ")[0] for sentence in resolved.differs] == [
        "settings.train.warmup_steps=5",
        "settings.train.steps=30",
        "settings.train.batch_size=2,",
    ]


def test_a_schedule_is_stretched_over_a_given_number_of_steps() -> None:
    resolved = resolve_training(trial(RUNNER, steps=30, batch_size=4), FRAMES, workers=1)
    assert resolved.differs[0].endswith("its schedule is stretched over them")
    train_step = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = resolved.schedule(train_step)
    assert schedule is not None
    schedule.apply(15)
    assert train_step.param_groups[0]["lr"] == pytest.approx(0.5)


def test_without_a_schedule_there_is_a_short_warm_up() -> None:
    resolved = resolve_training(trial(MINI, steps=50), FRAMES, workers=1)
    assert resolved.settings.train.warmup_steps == WARMUP
    assert resolved.differs == ()
    with pytest.raises(TrialError, match="steps is None; give one of the two"):
        resolve_training(trial(MINI, steps=None), FRAMES, workers=1)


def test_autocast_is_the_configs_where_there_is_a_gpu() -> None:
    assert with_autocast(trial(FULL, device="cuda", steps=1)).train.amp
    on_cpu = with_autocast(trial(FULL, steps=1, batch_size=1))
    assert not on_cpu.train.amp
    assert "does nothing on a CPU" in " ".join(resolve_training(on_cpu, FRAMES, 1).differs)
    asked = with_autocast(trial(MINI, device="cuda", steps=1, amp=True))
    assert "adds autocast" in " ".join(resolve_training(asked, FRAMES, 1).differs)


def test_an_override_takes_the_autocast_away() -> None:
    asked = trial(FULL, device="cuda", steps=1)
    assert not with_autocast(replace(asked, overrides=(("optim_wrapper.type", '"OptimWrapper"'),))).train.amp


def test_accumulated_batches_make_fewer_steps_and_keep_the_schedule() -> None:
    twice = replace(
        trial(RUNNER, steps=None, batch_size=4), overrides=(("optim_wrapper.accumulative_counts", "2"),)
    )
    resolved = resolve_training(twice, FRAMES, workers=1)
    assert resolved.steps == 33  # of two batches each
    train_step = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = resolved.schedule(train_step)
    assert schedule is not None
    schedule.apply(16)  # its last batch is the 34th of 66
    assert train_step.param_groups[0]["lr"] == pytest.approx(0.5)
    stretched = replace(twice, train=replace(twice.train, steps=66))
    other = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    slow = resolve_training(stretched, FRAMES, workers=1).schedule(other)
    assert slow is not None
    slow.apply(33)
    assert other.param_groups[0]["lr"] == pytest.approx(0.5, abs=0.02)
