"""From config to model: what builds, and what is refused with which sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.plan import Plan, PlanError
from pipeline.detector.build import ConfigError, build_model, load_config
from pipeline.detector.cmt_detector import CmtDetector
from pipeline.detector.inspection.plan_config import plan_of
from pipeline.detector.openmmlab.optimizer import OptimError
from pipeline.detector.weights import load_weights
from pipeline.errors import is_user_error
from pipeline.storage.paths import ROOT

MINI = "experiments/configs/cmt_aqr_pillar_mini.py"
SITES = ["aqr.0.cross", *[f"decoder.{i}.{kind}" for i in range(3) for kind in ("self", "cross")]]
HEAD = "model.pts_bbox_head"
LAYERS = f"{HEAD}.transformer.decoder.transformerlayers"


@pytest.fixture(scope="module")
def model() -> CmtDetector:
    return build_model(MINI)


def override(**values: Any) -> list[tuple[str, str]]:
    """Overrides from dotted keys with __ for the dots."""
    return [(key.replace("__", "."), json.dumps(value)) for key, value in values.items()]


def test_the_mini_config_builds_with_its_sites_and_plan(model: CmtDetector) -> None:
    assert model.sites == SITES
    assert str(model.plan["aqr.0.cross"]) == "local/sdpa_math"
    assert str(model.plan["decoder.1.cross"]) == "window/sdpa_math"
    assert str(model.plan["decoder.1.self"]) == "none/sdpa_math"
    assert model.image_size == (96, 240)


def test_its_weights_fit_into_eight_megabytes(model: CmtDetector) -> None:
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert size < 8e6  # the checkpoint that ships with the project


def test_the_shipped_checkpoint_fits_the_mini_config() -> None:
    path = ROOT / "experiments/checkpoints/cmt_aqr_pillar_mini.safetensors"
    assert load_weights(build_model(MINI), path).fresh == ()


def test_branches_are_frozen_as_the_config_says(model: CmtDetector) -> None:
    model.train()
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"img_backbone", "img_neck", "pts_branch"}
    assert not model.img_backbone.bn1.training
    assert model.pts_bbox_head.shared_conv.bn.training


def test_an_emptied_custom_keys_trains_everything() -> None:
    model = build_model(MINI, [("optim_wrapper.paramwise_cfg.custom_keys", "{}")])
    assert all(p.requires_grad for p in model.parameters())
    assert model.train().img_backbone.bn1.training


def test_a_plan_is_put_into_effect() -> None:
    plan = Plan.parse("aqr.*=local/reference;decoder.*.self=none/sdpa_math;decoder.*.cross=none/sdpa_math")
    model = build_model(MINI, plan=plan)
    assert model.plan == plan.resolve(SITES)
    assert str(model.pts_bbox_head.sites["aqr.0.cross"].choice) == "local/reference"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("decoder.9.cross=none/sdpa_math", "'decoder.9.cross' matches no site; the model has aqr.0.cross"),
        ("*=none/sdpa_math;decoder.0.*=none/sdpa_math", "matched by '\\*' and 'decoder.0.\\*'"),
        ("decoder.*=none/sdpa_math", "site aqr.0.cross has no choice"),
        ("aqr*=local/sdpa_math;decoder.*=window/sdpa_math", "decoder.0.self: window/sdpa_math.*takes none"),
        (
            "aqr*=window/sdpa_math;decoder.*=none/sdpa_math",
            "aqr.0.cross: window/sdpa_math.*takes local, none",
        ),
        (
            "aqr*=local/sdpa_math;*.self=none/sdpa_math;d*.cross=window/lowrank",
            "decoder.2.cross: window/lowrank.*rank",
        ),
        (
            "aqr*=local/sdpa_math;*.self=none/sdpa_math;d*.cross=window/sdpa_efficient",
            "no efficient.* kernel on the CPU",
        ),
        (
            "aqr*=local/sdpa_math;*.self=none/sdpa_math;d*.cross=window/sdpa_flash",
            "gives no gradient to a bias",
        ),
        (
            "aqr*=local/lowrank;*.self=none/sdpa_math;d*.cross=none/sdpa_math",
            "aqr.0.cross: local/lowrank cannot run",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_and_changes_nothing(
    model: CmtDetector, plan: str, message: str
) -> None:
    before = model.plan
    with pytest.raises(PlanError, match=message):
        model.apply_plan(Plan.parse(plan))
    assert model.plan == before


def test_a_gpu_plan_is_judged_for_the_gpu() -> None:
    plan = Plan.parse("aqr*=local/sdpa_math;*.self=none/sdpa_math;d*.cross=none/sdpa_flash")
    with pytest.raises(PlanError, match="computes in float16 or bfloat16, got float32"):
        build_model(MINI, plan=plan, device="cuda")
    build_model(MINI, plan=plan, device="cuda", dtype="bfloat16")


def test_use_flashbias_as_users_write_it_means_lowrank() -> None:
    cross = {"type": "PETRMultiheadFlashAttention", "embed_dims": 96, "num_heads": 2, "use_flashbias": True}
    key = f"{LAYERS}.attn_cfgs.1"
    model = build_model(MINI, [(key, json.dumps({**cross, "bias": "global"}))])
    assert str(model.plan["decoder.0.cross"]) == "global/lowrank"
    model = build_model(MINI, [(key, json.dumps({**cross, "use_flashbias": False}))])
    assert str(model.plan["decoder.0.cross"]) == "window/sdpa_math"
    with pytest.raises(PlanError, match=r"window bias.*name a rank"):
        build_model(MINI, [(key, json.dumps(cross))])
    dead = {**cross, "dropout": 0.1}
    with pytest.raises(PlanError, match=r"aqr.0.cross: local/lowrank cannot run"):
        build_model(
            MINI, [(f"{HEAD}.aqr_config.encoder_config.transformerlayers.attn_cfgs.0", json.dumps(dead))]
        )


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.image_sise", r"CmtDetector does not read the key 'image_sise' \(model.image_sise\)"),
        ("model.img_backbone.dept", r"ResNet does not read the key 'dept' \(model.img_backbone.dept\)"),
        ("model.pts_branch.backbone.layers", "SECOND does not read the key 'layers'"),
        ("model.pts_branch.max_pionts", "PillarBranch does not read the key 'max_pionts'"),
        (f"{HEAD}.num_queries", "CmtAqrHead does not read the key 'num_queries'"),
        (f"{HEAD}.bias_config.sgima", "AttentionBiasGenerator does not read the key 'sgima'"),
        (f"{HEAD}.aqr_config.windows", "AqrWeightGenerator does not read the key 'windows'"),
        (f"{HEAD}.denoising.scaler", "DenoisingSettings does not read the key 'scaler'"),
        (f"{HEAD}.bbox_coder.max_nun", "MultiTaskBBoxCoder does not read the key 'max_nun'"),
        (f"{LAYERS}.dropout", "DecoderLayer does not read the key 'dropout'"),
        ("model.data_preprocessor.meen", "Det3DDataPreprocessor does not read the key 'meen'"),
    ],
)
def test_a_key_nobody_reads_is_refused_by_name_and_place(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(MINI, [(key, "1")])


def test_unread_keys_of_attention_and_optimiser_are_refused_too() -> None:
    with pytest.raises(ValueError, match="unknown keys use_flash in attn_cfgs"):
        build_model(MINI, [(f"{LAYERS}.attn_cfgs.1.use_flash", "true")])
    with pytest.raises(OptimError, match="unknown keys paramwise"):
        build_model(MINI, [("optim_wrapper.paramwise", "{}")])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.no.such", "1", "the config has no model.no"),
        (f"{LAYERS}.attn_cfgs.7.impl", '"flex"', "the config has no model.*attn_cfgs.7"),
        ("model.image_size", "(96, 240)", "expected JSON"),
        ("_dims", "64", "variable of the config file"),
        ("modle", "{}", "unknown keys modle"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(MINI, [(key, value)])


def test_an_override_replaces_and_does_not_merge() -> None:
    cfg = load_config(MINI, override(model__pts_bbox_head__num_query=40, optim_wrapper__paramwise_cfg={}))
    assert cfg.model.pts_bbox_head.num_query == 40
    assert dict(cfg.optim_wrapper.paramwise_cfg) == {}


def test_a_config_that_is_not_there_or_lacks_a_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no config file .*none.py"):
        load_config("experiments/configs/none.py")
    path = tmp_path / "empty.py"
    path.write_text("optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1.0))\n")
    with pytest.raises(ConfigError, match="the section 'model' is missing"):
        load_config(path)


def test_sections_of_mmengine_s_runner_may_stand_in_a_config(tmp_path: Path) -> None:
    path = tmp_path / "runner.py"
    path.write_text((ROOT / MINI).read_text() + "\ntrain_cfg = dict(by_epoch=True, max_epochs=1)\n")
    assert load_config(path).train_cfg.max_epochs == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (f"{HEAD}.transformer.type", "CmtLidarTransformer", "expected type 'CmtTransformer'"),
        (f"{HEAD}.separate_head.type", "DCNSeparateHead", "expected type 'SeparateTaskHead'"),
        (f"{LAYERS}.ffn_cfgs.type", "SwiGLUFFN", "expected type 'FFN'"),
        (f"{LAYERS}.ffn_cfgs", [], "a dict as ffn_cfgs"),
        (f"{LAYERS}.ffn_cfgs", {"type": "FFN", "embed_dims": 64}, "keys embed_dims and feedforward_channels"),
        (f"{LAYERS}.attn_cfgs", {"type": "MultiheadAttention"}, "a list as attn_cfgs"),
        (f"{LAYERS}.attn_cfgs.0", {"embed_dims": 64, "num_heads": 4}, "expected the keys type, embed_dims"),
        (f"{LAYERS}.operation_order", ["norm", "self_attn"], "post-norm"),
        (f"{HEAD}.transformer.decoder.num_layers", 0, "decoder.num_layers: expected a whole number"),
        (f"{HEAD}.num_query", 0, "num_query: expected a whole number of at least 1, got 0"),
        (f"{HEAD}.depth_num", 2.5, "depth_num: expected a whole number of at least 1, got 2.5"),
        (f"{HEAD}.aqr_config.window_lidar", 0, "aqr_config.window_lidar: expected a whole number"),
        (f"{HEAD}.bias_config.window_camera", 2.5, "expected windows >= 1 cell in whole numbers"),
        (f"{HEAD}.train_cfg.assigner.code_weights", [1, 1, 1], "assigner.code_weights: expected 10 numbers"),
        (f"{HEAD}.tasks", [{"num_class": 5}, {"num_class": 5}], "expected one group with all classes"),
        (f"{HEAD}.hidden_dim", "many", "."),
    ],
)
def test_values_that_a_part_refuses_are_sentences(key: str, value: Any, message: str) -> None:
    """Both commands that build say it, and neither with a traceback."""
    for build in (build_model, lambda config, changes: plan_of(config, None, changes)):
        with pytest.raises(ValueError, match=message) as caught:
            build(MINI, [(key, json.dumps(value))])
        assert is_user_error(caught.value), caught.value


def test_a_layer_without_cross_attention_is_refused() -> None:
    layer = load_config(MINI).model.pts_bbox_head.transformer.decoder.transformerlayers
    changes = {
        "operation_order": ["self_attn", "norm", "ffn", "norm"],
        "attn_cfgs": [dict(layer.attn_cfgs[0])],
    }
    with pytest.raises(ConfigError, match="operation_order: expected a cross_attn"):
        build_model(MINI, [(f"{LAYERS}.{key}", json.dumps(value)) for key, value in changes.items()])
