"""The survey: published map sizes from configs alone, and facts about what does not build."""

from pathlib import Path

import pytest
import torch
from mmdet3d.registry import MODELS

from pipeline.detector.build import ConfigError, build_model
from pipeline.detector.inspection.survey import survey
from pipeline.storage.paths import ROOT

CONFIGS = ROOT / "experiments/configs"
MINI = CONFIGS / "cmt_aqr_pillar_mini.py"


@pytest.mark.parametrize(
    ("name", "bev", "camera", "keys"),
    [
        ("cmt_aqr_voxel0100_r50_800x320_cbgs", (128, 128), (20, 50), 22_384),
        ("cmt_aqr_voxel0075_vov_1600x640_cbgs", (180, 180), (40, 100), 56_400),
    ],
)
def test_full_size_maps_are_the_published_ones(
    name: str, bev: tuple[int, int], camera: tuple[int, int], keys: int
) -> None:
    found = survey(CONFIGS / f"{name}.py")
    assert (found.bev, found.camera) == (bev, camera)
    sizes = {site.name: site.sizes for site in found.sites}
    assert sizes["decoder.0.cross"].keys == sizes["aqr.0.cross"].keys == keys
    assert sizes["decoder.0.self"].masked
    assert sizes["decoder.0.cross"].queries == 1800  # 900 and as many denoising slots at most
    assert all(join.fits for join in found.joins)
    assert len(found.joins) > 8
    assert found.failed == found.left_out == found.unread == []


def test_the_survey_s_sites_and_parameters_are_those_of_the_model() -> None:
    found, model = survey(MINI), build_model(MINI)
    assert [site.name for site in found.sites] == model.sites
    assert sorted(found.parameters) == sorted(name for name, _ in model.named_parameters())
    for site in found.sites:
        module = model.pts_bbox_head.sites[site.name]
        built = module.sizes(found.sites[0].sizes.queries, denoising=True)
        assert (built.heads, built.head_size, built.masked) == (
            site.sizes.heads,
            site.sizes.head_size,
            site.sizes.masked,
        )
        assert site.kinds == module.kinds
        assert module.choice.bias == site.cfg.get("bias", site.default)


def test_surveying_draws_no_random_number_and_leaves_the_device(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    survey(MINI)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.zeros(1).device.type == "cpu"


def test_a_part_that_needs_a_package_of_another_machine_is_left_out(tmp_path: Path) -> None:
    @MODELS.register_module(name="NeedsSpconv", force=True)
    class NeedsSpconv(torch.nn.Module):
        def __init__(self) -> None:
            raise RuntimeError("spconv is not installed here")

    config = tmp_path / "config.py"
    config.write_text(
        f'_base_ = ["{MINI}"]\nmodel = dict(pts_branch=dict(_delete_=True, type="NeedsSpconv"))\n'
    )
    found = survey(config)
    assert found.left_out == [(("model", "pts_branch"), "spconv is not installed here")]
    assert found.failed == []
    assert found.bev is None
    assert found.camera == (12, 30)
    assert found.custom_keys == []  # the multiplier of pts_branch may well reach something


def test_the_registry_s_preface_is_cut_off_an_error(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text(
        f'_base_ = ["{MINI}"]\nmodel = dict(img_backbone=dict(depth=19), img_neck=dict(type="Nope"))\n'
    )
    found = dict(survey(config).failed)
    assert found["model", "img_backbone"] == "invalid depth 19 for resnet"
    assert found["model", "img_neck"] == "Nope is not in the mmdet3d::model registry."


def test_what_is_no_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text("model = 1\n")
    with pytest.raises(ConfigError, match="expected a model with a pts_bbox_head, found none"):
        survey(tmp_path / "config.py")


@pytest.mark.parametrize(
    ("block", "paddings"),
    [
        ("", ""),
        ("", "encoder_paddings=((1,), (1, 1, 1), (1, 1, 1), ([0, 1, 1], 1, 1)),"),
        ("block_type='basicblock',", "encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0, [0, 1, 1]), (0, 0)),"),
    ],
)
def test_the_sparse_encoder_shrinks_where_its_kind_of_block_does(
    tmp_path: Path, block: str, paddings: str
) -> None:
    """mmdet3d's defaults count where the config says nothing: 41 levels become 2, of 128 channels each."""
    path = tmp_path / "mine.py"
    path.write_text(
        f"_base_ = ['{CONFIGS}/cmt_aqr_voxel0100_r50_800x320_cbgs.py']\n"
        "model = dict(pts_middle_encoder=dict(_delete_=True, type='SparseEncoder', in_channels=5,\n"
        f"    sparse_shape=[41, 1024, 1024], {block} {paddings} order=('conv', 'norm', 'act')))\n"
    )
    (join,) = [one for one in survey(path).joins if one.key == ("model", "pts_backbone", "in_channels")]
    assert (join.takes, join.gives) == (256, 256)


def test_what_the_detector_refuses_the_survey_reports(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        f"_base_ = ['{MINI}']\nmodel = dict(test_cfg=dict(pts=None), train_cfg=dict(pts=dict(grid_size=1)))\n"
    )
    found = survey(path)
    assert ("CmtDetector", ("model", "test_cfg")) in found.unread
    assert [key for key, _ in found.failed] == [("model", "train_cfg")]
