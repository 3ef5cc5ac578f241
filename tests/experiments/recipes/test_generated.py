"""The full-size studies on generated data."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from experiments.recipes.generated.datasets import STUDY_DATA, TRAINING_DATA
from experiments.recipes.generated.model import SWEEPS
from experiments.recipes.registry import recipe
from experiments.study.preflight.datasets import make_datasets
from pipeline.detector.build import load_config
from pipeline.training.dataset import TrainingData, database_paths


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
    assert STUDY_DATA.root != TRAINING_DATA.root
    assert STUDY_DATA.seed != TRAINING_DATA.seed


def frozen(settings):
    keys = load_config(settings.config, settings.overrides).optim_wrapper.paramwise_cfg.custom_keys
    return {part for part, factors in keys.items() if factors.lr_mult == 0}


def test_the_branches_train_and_then_all_but_the_sparse_encoder():
    of_study, of_branches, of_all = (
        frozen(recipe(name).trials[0]) for name in ("r50_generated", "branches_r50", "pretrain_r50")
    )
    assert of_study == {"img_backbone", "pts_backbone", "pts_middle_encoder"}
    assert of_branches == set()
    assert of_all == {"pts_middle_encoder"}


def test_position_embeddings_learn_slowly():
    for name in ("branches_r50", "pretrain_r50"):
        (settings,) = recipe(name).trials
        keys = load_config(settings.config, settings.overrides).optim_wrapper.paramwise_cfg.custom_keys
        assert {part for part, factors in keys.items() if 0 < factors.lr_mult <= 0.05} == {
            "bev_embedding",
            "rv_embedding",
        }


@pytest.mark.parametrize(
    "name",
    [
        "branches_r50",
        "pretrain_r50",
        "r50_generated",
        "branches_vov",
        "pretrain_vov",
        "vov_generated",
    ],
)
def test_generated_frames_become_samples(name, tmp_path):
    """Nothing but the generated data is needed: no database of objects, no file of nuScenes."""
    made, (settings, *_) = recipe(name), recipe(name).trials
    assert not database_paths(settings.config, settings.overrides)
    tiny = [
        replace(one, root=str(tmp_path / one.root), frames_per_scene=1, scenes=((one.scenes[0][0], 1),))
        for one in made.datasets
    ]
    make_datasets(tuple(tiny), Console(file=io.StringIO()))
    data = replace(settings.data, train=(tiny[0].root,), val=tiny[0].root)
    model = load_config(settings.config, settings.overrides).model
    size = tuple(model.image_size)
    training = TrainingData(
        replace(settings, data=data), size, tuple(model.pts_voxel_layer.point_cloud_range)
    )
    transform = training.transform.at(0) if settings.train.augment else training.transform
    sample = transform(training.source[0], np.random.default_rng(0))
    assert sample.images.shape == (6, *size, 3)
    assert training.val_reading.sweeps == SWEEPS
    assert len(np.unique(training.source[0].points[:, 4])) == SWEEPS + 1  # the age of a scan


def test_the_decoder_begins_where_the_branches_ended():
    (branches,), (whole,) = recipe("branches_r50").trials, recipe("pretrain_r50").trials
    head = load_config(branches.config, branches.overrides).model.pts_bbox_head
    assert (head.query_losses, head.token_loss_weight > 0) == (False, True)
    assert load_config(whole.config, whole.overrides).model.pts_bbox_head.query_losses
    (name,) = recipe("branches_r50").named_trials()
    assert whole.init_checkpoint == f"runs/branches_r50/trials/{name}/weights.safetensors"


def test_the_voxels_of_a_range_are_those_of_the_sparse_grid():
    """Otherwise a cell would lie elsewhere than its position embedding says."""
    for name in ("pretrain_r50", "pretrain_vov"):
        (settings,) = recipe(name).trials
        model = load_config(settings.config, settings.overrides).model
        low, high = model.pts_voxel_layer.point_cloud_range[0], model.pts_voxel_layer.point_cloud_range[3]
        cells = (high - low) / model.pts_voxel_layer.voxel_size[0]
        assert cells == pytest.approx(model.pts_middle_encoder.sparse_shape[2])
        assert model.pts_bbox_head.bbox_coder.pc_range == model.pts_voxel_layer.point_cloud_range


def test_from_scratch_batch_norms_learn_their_statistics():
    """The config keeps those of ImageNet, and initial ones would normalise nothing."""
    for name, learns in (("pretrain_r50", True), ("r50_generated", False)):
        (settings, *_) = recipe(name).trials
        assert load_config(settings.config, settings.overrides).model.img_backbone.norm_eval != learns


def test_a_study_has_the_model_of_its_pretraining():
    """Its range and neck; the study starts from the weights."""
    for name in ("r50", "vov"):
        one, other = (
            load_config(made.trials[0].config, made.trials[0].overrides).model
            for made in (recipe(f"pretrain_{name}"), recipe(f"{name}_generated"))
        )
        for part in ("img_neck", "pts_voxel_layer", "pts_middle_encoder", "pts_neck"):
            assert one[part] == other[part]


def test_a_dataset_has_the_rig_that_it_names(tmp_path):
    tiny = replace(STUDY_DATA, root=str(tmp_path), frames_per_scene=1, scenes=(("mini_val", 1),))
    make_datasets((tiny,), Console(file=io.StringIO()))
    tables = tmp_path / "v1.0-mini"
    images = [one for one in json.loads((tables / "sample_data.json").read_text()) if one["width"]]
    assert {(one["width"], one["height"]) for one in images} == {(1600, 900)}
