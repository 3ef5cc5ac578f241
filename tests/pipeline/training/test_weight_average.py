"""A config's EMAHook: the average of the weights is evaluated and kept, bit for bit in every cohort."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.config.settings import TrialSettings
from pipeline.evaluation import evaluator
from pipeline.metrics.rows import read_rows
from pipeline.runtime.session import LocalSession
from pipeline.training.cohort import ArmEnd, run_cohort
from pipeline.training.setup import build_detector
from pipeline.training.trial import run_trial
from tests.pipeline.training.test_cohort import RUNG, STEPS, arms_in, outcome

Trial = Callable[..., TrialSettings]
MOMENTUM = 0.25
HOOK = {"type": "EMAHook", "momentum": MOMENTUM}


def with_average(settings: TrialSettings, **keys: object) -> TrialSettings:
    change = ("custom_hooks", json.dumps([{**HOOK, **keys}]))
    return replace(settings, overrides=(*settings.overrides, change))


def all_kept(trial: Trial) -> TrialSettings:
    return trial(steps=STEPS, checkpoint_every=1, checkpoints_kept=STEPS)


@pytest.fixture(autouse=True)
def few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "CALLS", 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("averaged")


@pytest.fixture
def done(place: Path, trial: Trial) -> Path:
    """An arm that trained alone, was measured in mid-training, and kept a checkpoint of every step."""
    if not (place / "arm1").exists():
        assert run_cohort(arms_in(place, with_average(all_kept(trial)), [1]), RUNG) == [ArmEnd("arm1")]
    return place / "arm1"


def weights_of(checkpoint: Path, part: str = "model/") -> dict[str, Tensor]:
    tensors = load_file(checkpoint / "tensors.safetensors")
    return {key.removeprefix(part): value for key, value in tensors.items() if key.startswith(part)}


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step_*"))


def by_hand(steps: list[dict[str, Tensor]]) -> Mapping[str, Tensor]:
    """The average after all steps: the first weights, then a quarter of the way to those of each step."""
    average = {name: value.double() for name, value in steps[0].items()}
    for weights in steps[1:]:
        average = {
            name: value + MOMENTUM * (weights[name].double() - value) for name, value in average.items()
        }
    return average


def test_the_kept_weights_are_the_average_of_those_of_all_steps(done: Path) -> None:
    steps = [weights_of(path) for path in checkpoints(done)]
    averages = weights_of(checkpoints(done)[-1], "average/")
    assert int(averages.pop("steps")) == len(steps) == STEPS
    kept, expected = load_file(done / "weights.safetensors"), by_hand(steps)
    moved = 0
    for name, value in kept.items():
        if name in averages:
            assert torch.equal(value, averages[name]), name
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)
            moved += not torch.equal(value, steps[-1][name])
        elif name in steps[-1]:  # statistics of batch norms; checkpoints leave frozen weights out
            assert torch.equal(value, steps[-1][name]), name
    assert moved > 50


def test_training_goes_on_from_the_weights_and_not_from_the_average(
    done: Path, trial: Trial, tmp_path: Path
) -> None:
    """The arm was measured after step 2, with its average; its weights are those without an average."""
    assert run_cohort(arms_in(tmp_path, all_kept(trial), [1])) == [ArmEnd("arm1")]
    for one, other in zip(checkpoints(done), checkpoints(tmp_path / "arm1"), strict=True):
        own, plain = weights_of(one), weights_of(other)
        assert all(torch.equal(own[name], plain[name]) for name in plain)


def test_what_is_measured_is_the_average(done: Path, trial: Trial, tmp_path: Path) -> None:
    """A model that starts from the kept weights and trains no step has the same detections and accuracy."""
    (arm,) = arms_in(tmp_path, trial(steps=0, init_checkpoint=str(done / "weights.safetensors")), [1])
    run_trial(arm.settings, arm.session)
    accuracy = [
        {
            (r.metric, r.condition): r.value
            for r in read_rows(folder / "rows.jsonl")
            if r.metric in ("NDS", "mAP")
        }
        for folder in (done, tmp_path / "arm1")
    ]
    assert accuracy[0] == accuracy[1] != {}
    assert outcome(done)["boxes"] == outcome(tmp_path / "arm1")["boxes"]


def test_a_cohort_gives_every_arm_the_average_that_it_has_alone(
    done: Path, trial: Trial, tmp_path: Path
) -> None:
    run_cohort(arms_in(tmp_path, with_average(all_kept(trial)), [7, 1, 0]), RUNG)
    assert outcome(tmp_path / "arm1") == outcome(done)
    assert outcome(tmp_path / "arm0") != outcome(done)


def test_a_resumed_trial_has_the_average_of_the_unbroken_one(
    done: Path, trial: Trial, tmp_path: Path
) -> None:
    shutil.copytree(checkpoints(done)[1], tmp_path / "arm1" / "checkpoints" / "step_00000002")
    (arm,) = arms_in(tmp_path, with_average(all_kept(trial)), [1])
    run_trial(arm.settings, LocalSession(tmp_path / "arm1"))
    whole, resumed = (load_file(folder / "weights.safetensors") for folder in (done, tmp_path / "arm1"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    "keys",
    [
        {"ema_type": "MomentumAnnealingEMA", "gamma": 10},
        {"ema_type": "mmdet.ExpMomentumEMA", "gamma": 10},
        {"interval": 2},
        {"accumulate": 2},
    ],
    ids=["annealing", "exp", "interval", "accumulation"],
)
def test_other_averages_are_mmengines(keys: dict[str, Any], trial: Trial, tmp_path: Path) -> None:
    each = int(str(keys.get("accumulate", 1)))
    keys = {key: value for key, value in keys.items() if key != "accumulate"}
    settings = with_average(all_kept(trial), **keys)
    change = ("optim_wrapper.accumulative_counts", str(each))
    run_trial(replace(settings, overrides=(*settings.overrides, change)), LocalSession(tmp_path))
    steps = [weights_of(path) for path in checkpoints(tmp_path)]
    averages = weights_of(checkpoints(tmp_path)[-1], "average/")
    name = next(n for n in averages if n != "steps" and not torch.equal(steps[0][n], steps[-1][n]))
    before = [build_detector(settings, torch.device("cpu")).state_dict(), *steps]
    # mmengine's hook counts batches: those of a step but the last find the weights from before it
    seen = [w[name] for old, new in pairwise(before) for w in (*[old] * (each - 1), new)]
    share = {
        "MomentumAnnealingEMA": lambda t: max(MOMENTUM, 10 / (10 + t)),
        "mmdet.ExpMomentumEMA": lambda t: (1 - MOMENTUM) * math.exp(-(1 + t) / 10) + MOMENTUM,
        "": lambda t: 0 if t % keys.get("interval", 1) else MOMENTUM,
    }[str(keys.get("ema_type", ""))]
    expected = seen[0]
    for place, weights in enumerate(seen[1:], 1):
        expected = expected + share(place) * (weights - expected)
    torch.testing.assert_close(averages[name], expected, rtol=1e-5, atol=1e-7)
    assert int(averages["steps"]) == len(seen) == each * STEPS
