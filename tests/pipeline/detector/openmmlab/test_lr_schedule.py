"""Learning rates and momenta of every step: mmengine's own schedulers, driven as its Runner drives them."""

import copy
import json
import math

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from pipeline.detector.build import load_config
from pipeline.detector.openmmlab.lr_schedule import (
    LrSchedule,
    ScheduleError,
    TrainingLength,
    read_length,
    read_schedule,
)
from pipeline.storage.paths import ROOT

EPOCH, EPOCHS = 3, 20
CYCLE = load_config("experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py").to_dict()["param_scheduler"]
OTHERS = [
    {"type": "LinearLR", "start_factor": 0.1, "begin": 0, "end": 7, "by_epoch": False},
    {"type": "MultiStepLR", "milestones": [4, 9], "gamma": 0.5, "by_epoch": True},
    {"type": "StepMomentum", "step_size": 5, "gamma": 0.9, "by_epoch": True, "convert_to_iter_based": True},
    {"type": "MultiStepLR", "milestones": [6], "by_epoch": True, "convert_to_iter_based": True},
]


def optimiser(lr_scale: float = 1.0) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": 1.4e-4 * m * lr_scale} for m in (1.0, 0.05)]
    return torch.optim.AdamW(groups, lr=1.4e-4)


def rates(made: torch.optim.Optimizer) -> list[tuple[float, float]]:
    return [(group["lr"], group["betas"][0]) for group in made.param_groups]


def of_the_runner(entries: list[dict], steps: int) -> list[list[tuple[float, float]]]:
    """Build and step the schedulers as Runner and ParamSchedulerHook do."""
    made = optimiser()
    wrapper, schedulers = OptimWrapper(made), []
    for entry in copy.deepcopy(entries):
        entry.setdefault("end", EPOCHS if entry.get("by_epoch", True) else EPOCHS * EPOCH)
        schedulers.append(
            PARAM_SCHEDULERS.build(entry, default_args={"optimizer": wrapper, "epoch_length": EPOCH})
        )
    found = []
    for step in range(steps):
        found.append(rates(made))
        made.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or (step + 1) % EPOCH == 0:
                scheduler.step()
    return found


@pytest.mark.filterwarnings("ignore:Detected call")  # mmengine's, of an optimiser that it wraps
@pytest.mark.parametrize("entries", [CYCLE, OTHERS], ids=["cmt", "others"])
@pytest.mark.parametrize("each", [1, 2])
def test_every_step_has_the_rates_of_the_runner(entries, each) -> None:
    expected = of_the_runner(entries, EPOCH * EPOCHS)[each - 1 :: each]  # where it updates the weights
    made = optimiser()
    schedule = LrSchedule(entries, made, TrainingLength(epochs=EPOCHS), EPOCH, batches_per_step=each)
    found = []
    for step in range(EPOCH * EPOCHS // each):
        schedule.apply(step)
        found.append(rates(made))
    assert found == expected
    assert len({lr for ((lr, _), _) in found}) > 3


def test_the_cycle_of_cmt_keeps_the_multipliers_and_returns_to_its_momentum() -> None:
    made = optimiser()
    schedule = LrSchedule(CYCLE, made, TrainingLength(epochs=EPOCHS), EPOCH)
    schedule.apply(8 * EPOCH)
    (peak, low), (small, _) = rates(made)
    assert peak == pytest.approx(6 * 1.4e-4, rel=0.01)
    assert small == pytest.approx(0.05 * peak)
    assert low == pytest.approx(0.9 * 0.85 / 0.95, rel=1e-3)
    schedule.apply(EPOCHS * EPOCH)
    assert rates(made)[0][1] == pytest.approx(0.9, abs=1e-3)


def test_a_resumed_schedule_goes_on_where_it_was() -> None:
    through, resumed = optimiser(), optimiser()
    first = LrSchedule(CYCLE, through, TrainingLength(epochs=EPOCHS), EPOCH)
    for step in range(31):
        first.apply(step)
    LrSchedule(CYCLE, resumed, TrainingLength(epochs=EPOCHS), EPOCH).apply(30)
    assert rates(resumed) == rates(through)


def test_lr_scale_scales_all_rates_and_no_momentum() -> None:
    plain, scaled = optimiser(), optimiser(0.5)
    LrSchedule(CYCLE, plain, TrainingLength(epochs=EPOCHS), EPOCH).apply(17)
    LrSchedule(CYCLE, scaled, TrainingLength(epochs=EPOCHS), EPOCH, lr_scale=0.5).apply(17)
    for (lr, momentum), (half, same) in zip(rates(plain), rates(scaled), strict=True):
        assert half == pytest.approx(lr / 2)
        assert same == momentum


def test_epochs_stretched_over_a_number_of_steps_end_with_them() -> None:
    made = optimiser()
    schedule = LrSchedule(CYCLE, made, TrainingLength(epochs=EPOCHS), epoch=50 / EPOCHS)
    peaks = []
    for step in range(50):
        schedule.apply(step)
        peaks.append(rates(made)[0][0])
    assert peaks.index(max(peaks)) in (19, 20)  # 8 of 20 epochs
    assert peaks[-1] < 0.1 * 1.4e-4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"param_scheduler": [{"type": "OneCycleLR"}]}, r"param_scheduler\[0\]: expected one of ConstantLR"),
        (
            {"train_cfg": {"max_epochs": 3, "dynamic_intervals": []}},
            "train_cfg: unknown keys dynamic_intervals",
        ),
        (
            {"train_cfg": {"by_epoch": False, "max_epochs": 3}},
            "IterBasedTrainLoop needs max_iters, .* got None",
        ),
        ({"train_cfg": {"type": "MyLoop"}}, "unknown loop 'MyLoop'"),
    ],
)
def test_what_cannot_be_followed_is_refused(config, message) -> None:
    read = read_schedule if "param_scheduler" in config else read_length
    with pytest.raises(ScheduleError, match=message):
        read(config)


def test_a_phase_without_a_step_is_left_out() -> None:
    entries = read_schedule({"param_scheduler": CYCLE})
    for steps in (1, 2, 3, 20):  # of 20 epochs
        optimizer = optimiser()
        schedule = LrSchedule(entries, optimizer, TrainingLength(epochs=20), steps / 20)
        for step in range(steps):
            schedule.apply(step)
        assert all(0 < group["lr"] < 1 for group in optimizer.param_groups)
    nothing = {"type": "LinearLR", "begin": 3, "end": 3, "convert_to_iter_based": True}
    with pytest.raises(ScheduleError, match="end should be larger than begin"):
        LrSchedule([nothing], optimiser(), TrainingLength(epochs=20), 3)


def test_an_entry_that_mmengine_refuses_is_named() -> None:
    with pytest.raises(ScheduleError, match=r"param_scheduler\[0\], LinearLR: .*gama"):
        LrSchedule([{"type": "LinearLR", "gama": 1}], optimiser(), TrainingLength(steps=9), 3)


def test_a_config_is_refused_when_it_is_read() -> None:
    path = ROOT / "experiments/configs/cmt_aqr_pillar_mini_runner.py"
    change = (("param_scheduler", json.dumps([{"type": "OneCycleLR"}])),)
    with pytest.raises(ScheduleError, match="got 'OneCycleLR'"):
        load_config(path, change)
    assert read_length(load_config(path).to_dict()) == TrainingLength(epochs=6)
    assert math.isfinite(TrainingLength(epochs=6).in_steps(4))
