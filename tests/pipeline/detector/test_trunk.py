"""The trunk of a detector: found by what trains, shared by copies."""

from typing import Any

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.registry import init_default_scope

from pipeline.detector.build import build_model, load_config
from pipeline.detector.openmmlab.optimizer import freeze
from tests.smallest import SMALLEST

FOLDER = "experiments/configs"
MINI = f"{FOLDER}/cmt_aqr_pillar_mini.py"
FREE = ("optim_wrapper.paramwise_cfg.custom_keys", "{}")
KEYS = "optim_wrapper.paramwise_cfg.custom_keys"


def trunk_of(config: str) -> Any:
    """Find the trunk of a full-size config's detector, built without memory."""
    cfg = load_config(config)
    init_default_scope("mmdet3d")
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    freeze(model, cfg.optim_wrapper)
    model.find_trunk()
    return model


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("cmt_aqr_voxel0100_r50_800x320_cbgs", (1, 2)),  # both backbones, and all before them; no neck
        ("cmt_aqr_voxel0075_vov_1600x640_cbgs", (1, 2)),
        ("cmt_voxel0100_r50_800x320_cbgs", (0, 0)),  # CMT trains everything
    ],
)
def test_the_trunk_of_full_size_configs(name: str, stages: tuple[int, int]) -> None:
    model = trunk_of(f"{FOLDER}/{name}.py")
    assert model.trunk_stages == stages
    if stages == (1, 2):
        voxels = [model.pts_voxel_layer, model.pts_voxel_encoder, model.pts_middle_encoder]
        assert model.trunk_modules == [model.img_backbone, *voxels, model.pts_backbone]


def test_the_trunk_of_the_mini_is_both_branches_and_none_if_nothing_is_frozen() -> None:
    assert build_model(MINI, SMALLEST).trunk_stages == (2, 1)
    assert build_model(MINI, (*SMALLEST, FREE)).trunk_stages == (0, 0)


@pytest.mark.parametrize(
    ("frozen", "stages"),
    [
        ('{"img_neck": {"lr_mult": 0.0}}', (0, 0)),  # what comes before it trains
        ('{"img_backbone": {"lr_mult": 0.0}}', (1, 0)),
        ('{"pts_branch.neck": {"lr_mult": 0.0}}', (0, 0)),
    ],
)
def test_a_stage_belongs_to_the_trunk_with_all_before_it_and_as_a_whole(
    frozen: str, stages: tuple[int, int]
) -> None:
    assert build_model(MINI, (*SMALLEST, (KEYS, frozen))).trunk_stages == stages


def test_a_batch_norm_that_counts_is_no_trunk() -> None:
    model = build_model(MINI, SMALLEST)
    norm = torch.nn.BatchNorm2d(96, affine=False)  # nothing in it trains, and its statistics change
    model.img_neck.append = norm
    model.find_trunk()
    assert model.trunk_stages == (1, 1)


def test_a_copy_beside_the_trunk_shares_it_and_nothing_else() -> None:
    model = build_model(MINI, SMALLEST)
    copied = model.copy_beside_trunk()
    for name, parameter in model.named_parameters():
        other = copied.get_parameter(name)
        assert torch.equal(parameter, other)
        assert (parameter is other) == (not parameter.requires_grad), name
    assert copied.pts_bbox_head.sites.keys() == model.pts_bbox_head.sites.keys()
    assert not set(copied.pts_bbox_head.sites.values()) & set(model.pts_bbox_head.sites.values())
