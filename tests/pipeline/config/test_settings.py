"""Settings are values: they survive JSON, and any change of them changes their name."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from pipeline.config.plan import Plan
from pipeline.config.settings import CLASSES, DataSettings, TrainSettings, TrialSettings
from pipeline.json_files import JsonError

SETTINGS = TrialSettings(
    study="demo",
    config="mini.py",
    plan=Plan.of({"*": "window/sdpa_math"}),
    data=DataSettings(train=("data/a", "data/b"), val="data/a"),
    train=TrainSettings(steps=10),
    plan_mixture=(Plan.of({"*": "none/sdpa_math"}),),
    conditions=("clean", "no_lidar"),
    overrides=(("model.head.num_query", "200"),),
)


def test_settings_survive_json():
    plain = json.loads(json.dumps(SETTINGS.to_dict()))
    again = TrialSettings.from_dict(plain)
    assert again == SETTINGS
    assert again.digest == SETTINGS.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"plan": Plan.of({"*": "none/sdpa_math"})},
        {"plan_mixture": ()},
        {"data": replace(SETTINGS.data, train=("data/b", "data/a"))},
        {"data": replace(SETTINGS.data, missing_cameras="black")},
        {"train": replace(SETTINGS.train, lr_scale=0.5)},
        {"train": replace(SETTINGS.train, cuda_graphs=False)},
        {"seed": 1},
        {"init_checkpoint": "weights.safetensors"},
        {"conditions": ("clean",)},
        {"overrides": (("model.head.num_query", "201"),)},
        {"device": "cuda"},
        {"torch_threads": 1},
    ],
)
def test_every_change_changes_the_digest(changes):
    assert replace(SETTINGS, **changes).digest != SETTINGS.digest


def test_the_digest_is_the_one_of_this_version():
    assert (
        SETTINGS.digest == "6b209be9f51f"
    )  # a change renames every trial, and needs a note in the changelog


def test_unknown_and_missing_keys_are_refused():
    plain = SETTINGS.to_dict()
    with pytest.raises(JsonError, match="colour"):
        TrialSettings.from_dict({**plain, "colour": "red"})
    with pytest.raises(JsonError, match="steps"):
        TrialSettings.from_dict({**plain, "train": {}})


def test_settings_do_not_change():
    with pytest.raises(FrozenInstanceError):
        SETTINGS.seed = 1


def test_ten_classes():
    assert len(set(CLASSES)) == 10
