"""The four full-size configs: what they build has the published sizes; and what a wrong one is told."""

from typing import Any

import pytest
import torch
from mmdet3d.models.layers.spconv import IS_SPCONV2_AVAILABLE
from mmdet3d.registry import MODELS
from mmengine.registry import init_default_scope

from pipeline.config.plan import Plan
from pipeline.detector.backbones.lidar_branch import BranchError
from pipeline.detector.build import build_model, load_config
from pipeline.detector.openmmlab.optimizer import freeze, multipliers

FOLDER = "experiments/configs"
R50, VOV = "voxel0100_r50_800x320_cbgs", "voxel0075_vov_1600x640_cbgs"
CONFIGS = [f"{FOLDER}/{kind}_{size}.py" for kind in ("cmt", "cmt_aqr") for size in (R50, VOV)]

PARAMETERS = {  # of the published detectors
    "img_neck": {R50: 1_377_024, VOV: 1_049_344},
    "img_backbone": {R50: 23_508_032, VOV: 69_523_520},
    "pts_middle_encoder": {R50: 2_694_352, VOV: 2_694_352},
    "pts_backbone": {R50: 4_280_832, VOV: 4_280_832},
    "pts_neck": {R50: 295_936, VOV: 295_936},
    "pts_bbox_head": {R50: 8_763_396, VOV: 8_763_396},
    "pts_bbox_head.shared_conv": {R50: 1_180_160, VOV: 1_180_160},
    "pts_bbox_head.bev_embedding": {R50: 197_120, VOV: 197_120},
    "pts_bbox_head.rv_embedding": {R50: 460_032, VOV: 460_032},
    "pts_bbox_head.transformer": {R50: 6_321_152, VOV: 6_321_152},
    "pts_bbox_head.task_heads": {R50: 602_232, VOV: 602_232},
}
IMAGES = {R50: ((6, 3, 320, 800), (6, 256, 20, 50)), VOV: ((6, 3, 640, 1600), (6, 256, 40, 100))}
BEV = {R50: (128, 128), VOV: (180, 180)}


def built(config: str, **changes: Any) -> Any:
    """Build without memory; a change to None leaves the key out."""
    init_default_scope("mmdet3d")
    model = {**load_config(config).model, **changes}
    with torch.device("meta"):
        return MODELS.build({key: value for key, value in model.items() if value is not None})


@pytest.mark.parametrize("size", [R50, VOV])
def test_every_part_has_the_published_number_of_parameters(size: str) -> None:
    model = built(f"{FOLDER}/cmt_{size}.py")
    found = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in PARAMETERS}
    assert found == {name: counts[size] for name, counts in PARAMETERS.items()}


@pytest.mark.parametrize("size", [R50, VOV])
def test_maps_have_the_published_sizes(size: str) -> None:
    model = built(f"{FOLDER}/cmt_aqr_{size}.py").eval()
    into, out = IMAGES[size]
    assert model.image_size == into[2:]
    with torch.device("meta"), torch.no_grad():
        assert model.image_features(torch.empty(1, *into)).shape == out
        canvas = torch.empty(1, 256, *BEV[size])
        assert model.pts_neck(model.pts_backbone(canvas))[0].shape == (1, 512, *BEV[size])


@pytest.mark.parametrize("config", CONFIGS)
def test_learning_rates_reach_the_parts_they_name(config: str) -> None:
    model, wrapper = built(config), load_config(config).optim_wrapper
    found = {name: m.lr for name, m in multipliers(model, wrapper).items()}
    aqr = "cmt_aqr" in config
    assert found["img_backbone." + next(n for n, _ in model.img_backbone.named_parameters())] == 0.01 * (
        not aqr
    )
    assert found["pts_bbox_head.transformer.decoder.post_norm.weight"] == (0.5 if aqr else 1.0)
    assert found["pts_bbox_head.reference_points.weight"] == (0.3 if aqr else 1.0)
    if aqr:
        assert found["pts_bbox_head.bias_generator.bias_scale"] == 2.0
        assert found["pts_bbox_head.aqr.weight_head.weight"] == 1.0
        freeze(model, wrapper)
        model.train()
        still = (model.img_backbone, model.pts_backbone, model.pts_middle_encoder)
        norms = [m for part in still for m in part.modules() if "BatchNorm" in type(m).__name__]
        assert norms
        assert not any(norm.training for norm in norms)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_plan_of_a_config_is_the_one_it_spells(config: str) -> None:
    plan = built(config).plan
    assert len(plan.choices) == 12 + ("cmt_aqr" in config)
    spelled = {site: str(choice) for site, choice in plan.choices}
    assert spelled["decoder.5.self"] == "none/sdpa_efficient"
    if "cmt_aqr" in config:
        assert (spelled["aqr.0.cross"], spelled["decoder.0.cross"]) == ("local/rects", "window/rects")
    else:
        assert spelled["decoder.0.cross"] == "none/rects"


def test_a_branch_in_part_or_twice_is_refused() -> None:
    with pytest.raises(BranchError, match=r"all of pts_voxel_layer.*got pts_voxel_layer, .*, pts_backbone$"):
        built(CONFIGS[0], pts_neck=None)
    pillars = load_config(f"{FOLDER}/cmt_aqr_pillar_mini.py").model.pts_branch
    with pytest.raises(BranchError, match=r"expected either pts_branch or all of.*; got pts_branch, pts_vox"):
        built(CONFIGS[0], pts_branch=pillars)
    with pytest.raises(BranchError, match="CmtAqrHead needs a LiDAR branch and an image branch"):
        built(f"{FOLDER}/cmt_aqr_pillar_mini.py", pts_branch=None)


@pytest.mark.slow
@pytest.mark.skipif(not IS_SPCONV2_AVAILABLE, reason="spconv is not installed (extra gpu)")
@pytest.mark.parametrize("points", [400, 1, 0])
def test_clouds_of_any_size_make_a_map(points: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(CONFIGS[0], plan=Plan.of({"*": "none/sdpa_math"})).to(device).train()
    cloud = torch.rand(points, 5, device=device) * 50
    with torch.no_grad():
        found = model.point_features([cloud])
    assert found.shape == (1, 512, 128, 128)
    assert found.isfinite().all()
    assert model.pts_middle_encoder.training
