"""No section of a config is passed over in silence: it is read, its idleness is said, or it is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.lint.check import lint
from pipeline.config.sections import HOOKS, NO_EFFECT, SECTIONS, refusals, without_effect
from pipeline.config.settings import TrialSettings
from pipeline.detector.build import build_model
from pipeline.errors import TrialError
from pipeline.storage.paths import ROOT
from pipeline.training.initial_weights import initial_weights
from pipeline.training.setup import build_detector
from tests.pipeline.conftest import CONFIG, OVERRIDES

REFUSED = {
    "resume": (True, "would go on from a checkpoint of another training"),
    "auto_scale_lr": ({"enable": True, "base_batch_size": 16}, "would scale the learning rate"),
    "data_preprocessor": (
        {"type": "Det3DDataPreprocessor"},
        "gives data_preprocessor to a model that has none",
    ),
    "custom_hooks": (
        [{"type": "EMAHook", "momentum": 2e-4, "update_buffers": True}],
        "EMAHook with update_buffers=True is not followed",
    ),
    "default_hooks": ({"mine": {"type": "MyHook"}}, "MyHook would change the training"),
}


@pytest.mark.parametrize("section", REFUSED)
def test_what_would_change_a_training_stops_it_and_lint_finds_it(
    section: str, trial: Callable[..., TrialSettings], tmp_path: Path
) -> None:
    value, sentence = REFUSED[section]
    config = tmp_path / "mine.py"
    config.write_text(f"_base_ = ['{ROOT / CONFIG}']\n{section} = {value!r}\n")
    settings = replace(trial(), config=str(config))
    with pytest.raises(TrialError, match=sentence):
        build_detector(settings, torch.device("cpu"))
    found = [finding for finding in lint(config, "cpu").wrong if finding.rule == "not-followed"]
    assert [finding.place.line for finding in found] == [2]


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"begin_epoch": 2}, "begin_epoch=2 is not followed"),
        ({"ema_type": "StochasticWeightAverage"}, "the average StochasticWeightAverage is not followed"),
        ({"momentum": 1.5}, "momentum=1.5 averages nothing"),
        ({"interval": 0}, "interval=0 averages nothing"),
        ({"decay": 0.99}, "decay=0.99 is not followed"),
    ],
)
def test_averages_that_are_not_followed_are_refused(keys: dict[str, object], sentence: str) -> None:
    (refused,) = refusals({"custom_hooks": [{"type": "EMAHook", **keys}]})
    assert sentence in refused.sentence
    assert refused.key == ("custom_hooks", 0, next(iter(keys)))


def test_harmless_values_are_admitted() -> None:
    harmless = {
        "resume": False,
        "auto_scale_lr": {"enable": False, "base_batch_size": 16},
        "default_hooks": {"checkpoint": {"type": "CheckpointHook"}, "visualization": None},
        "custom_hooks": [
            {"type": "mmdet3d.DisableObjectSampleHook"},
            {"type": "EmptyCacheHook"},
            {"type": "mmdet.CheckInvalidLossHook"},
            {"type": "EMAHook", "ema_type": "mmdet.ExpMomentumEMA", "momentum": 2e-4, "gamma": 2000},
        ],
    }
    assert list(refusals(harmless)) == []
    assert without_effect(harmless) == {
        "auto_scale_lr": SECTIONS["auto_scale_lr"].why,
        "default_hooks": SECTIONS["default_hooks"].why,
        "EmptyCacheHook": HOOKS["EmptyCacheHook"].why,
        "CheckInvalidLossHook": HOOKS["CheckInvalidLossHook"].why,
    }


def test_lint_names_every_section_that_has_no_effect(tmp_path: Path) -> None:
    idle = [name for name, section in SECTIONS.items() if section.fate == NO_EFFECT and name != "resume"]
    config = tmp_path / "mine.py"
    values = {"auto_scale_lr": {"base_batch_size": 16}, "default_hooks": {"timer": {"type": "IterTimerHook"}}}
    lines = [f"{name} = {values.get(name, {'key': 1})!r}" for name in idle]
    config.write_text("\n".join([f"_base_ = ['{ROOT / CONFIG}']", *lines]))
    (note,) = [finding for finding in lint(config, "cpu").notes if finding.rule == "no-effect"]
    assert all(f"{name}: {SECTIONS[name].why}" in note.sentence for name in idle)


def test_load_from_is_where_a_trial_starts_unless_its_settings_say_otherwise(
    trial: Callable[..., TrialSettings], tmp_path: Path
) -> None:
    backbone = {
        name: torch.full_like(value, 0.5)
        for name, value in build_model(CONFIG, OVERRIDES).state_dict().items()
        if name.startswith("img_")
    }
    save_file(backbone, tmp_path / "images.safetensors")
    named = ("load_from", json.dumps(str(tmp_path / "images.safetensors")))
    settings = trial(overrides=(*OVERRIDES, named))
    assert initial_weights(settings) == str(tmp_path / "images.safetensors")
    state = build_detector(settings, torch.device("cpu")).state_dict()
    assert all(torch.equal(state[name], value) for name, value in backbone.items())
    assert initial_weights(replace(settings, init_checkpoint="other.pth")) == "other.pth"
    assert load_file(tmp_path / "images.safetensors").keys() < state.keys()
