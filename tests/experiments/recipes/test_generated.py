"""The full-size studies on generated data."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from experiments.recipes.generated import ALL_TRAINED, STUDY_DATA, TRAINING_DATA
from experiments.recipes.registry import recipe
from experiments.study.preflight import make_datasets
from pipeline.detector.build import load_config
from pipeline.storage.paths import resolve_path


@pytest.mark.parametrize("size", ["r50", "vov"])
def test_a_study_starts_from_its_pretraining(size):
    pretraining, study = recipe(f"pretrain_{size}"), recipe(f"{size}_generated")
    (name,) = pretraining.named_trials()
    wanted = f"runs/{pretraining.name}/trials/{name}/weights.safetensors"
    assert {settings.init_checkpoint for settings in study.trials} == {wanted}


def test_no_arm_starts_with_an_advantage():
    """Every arm of the study is trained in the pretraining, and no other plan."""
    (settings,), study = recipe("pretrain_r50").trials, recipe("r50_generated")
    assert {settings.plan, *settings.plan_mixture} == {one.plan for one in study.trials}


def test_the_study_has_frames_of_its_own():
    assert STUDY_DATA.root not in {dataset.root for dataset in TRAINING_DATA}
    assert STUDY_DATA.seed not in {dataset.seed for dataset in TRAINING_DATA}


def test_the_pretraining_trains_what_the_config_freezes():
    (settings,) = recipe("pretrain_r50").trials
    path = resolve_path(settings.config)
    frozen = load_config(path, ()).optim_wrapper.paramwise_cfg.custom_keys
    assert any(group.lr_mult == 0 for group in frozen.values())
    assert not load_config(path, ALL_TRAINED).optim_wrapper.paramwise_cfg.custom_keys


def test_a_dataset_has_the_rig_that_it_names(tmp_path):
    tiny = replace(STUDY_DATA, root=str(tmp_path), frames_per_scene=1, scenes=(("mini_val", 1),))
    make_datasets((tiny,), Console(file=io.StringIO()))
    tables = tmp_path / "v1.0-mini"
    images = [one for one in json.loads((tables / "sample_data.json").read_text()) if one["width"]]
    assert {(one["width"], one["height"]) for one in images} == {(1600, 900)}
