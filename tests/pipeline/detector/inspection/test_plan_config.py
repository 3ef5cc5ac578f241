"""Config -> plan -> config: the printed config builds the same model, whatever the layers do."""

from pathlib import Path

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from torch import Tensor

from pipeline.config.plan import Plan, PlanError
from pipeline.detector.build import build_model, load_config
from pipeline.detector.inspection.plan_config import literal, plan_of, print_config
from pipeline.storage.paths import ROOT

MINI = "experiments/configs/cmt_aqr_pillar_mini.py"
FULL_SIZE = [
    "cmt_voxel0100_r50_800x320_cbgs.py",
    "cmt_voxel0075_vov_1600x640_cbgs.py",
    "cmt_aqr_voxel0100_r50_800x320_cbgs.py",
    "cmt_aqr_voxel0075_vov_1600x640_cbgs.py",
]
CHANGES = {
    "nothing": "",
    "all layers alike": "decoder.*.cross=global/lowrank;decoder.*.self=none/reference",
    "a rank in one layer": "decoder.1.cross=window/lowrank@4",
    "a window in two layers": "decoder.1.cross=window:7/rects;decoder.2.cross=gaussian:2/lowrank@4",
    "every layer its own": "decoder.0.cross=none/rects;decoder.1.cross=gaussian/rects;aqr.*=none/flash",
}


def head_of(config: str | Path) -> dict[str, Tensor]:
    """Parameters and buffers of a config's head, on the meta device: the rest holds no site."""
    with torch.device("meta"):
        return dict(MODELS.build(load_config(config).model.pts_bbox_head).state_dict())


def there_and_back(config: str, changes: str, folder: Path) -> Path:
    """Print a changed plan, read it back, and check that nothing was lost; return the printed file."""
    plan = plan_of(config, Plan.parse(changes))
    printed = folder / "printed.py"
    printed.write_text(print_config(config, plan, folder))
    assert plan_of(printed) == plan
    before, after = head_of(config), head_of(printed)
    assert {key: value.shape for key, value in before.items()} == {k: v.shape for k, v in after.items()}
    again = folder / "again.py"
    again.write_text(print_config(printed, plan, folder))
    assert plan_of(again) == plan
    return printed


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_printed_plan_builds_the_same_model(changes: str, tmp_path: Path) -> None:
    printed = there_and_back(MINI, changes, tmp_path)
    one, two = Config.fromfile(ROOT / MINI), Config.fromfile(printed)
    for cfg in (one, two):  # all else is what it was
        cfg.model.pts_bbox_head.transformer.decoder.pop("transformerlayers")
        cfg.model.pts_bbox_head.aqr_config.encoder_config.pop("transformerlayers")
    assert one.model == two.model
    # Under the Runner too, parameters are frozen and grouped as in our loop.
    expected = {"constructor": "CmtOptimWrapperConstructor", **one.optim_wrapper.to_dict()}
    assert two.optim_wrapper.to_dict() == expected


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_plans_print_and_read_back(name: str, tmp_path: Path) -> None:
    config = f"experiments/configs/{name}"
    changes = "decoder.3.cross=none/rects;decoder.*.self=none/sdpa_efficient"
    there_and_back(config, changes, tmp_path)


def test_the_printed_config_builds_a_whole_detector_with_the_weights_of_its_base(tmp_path: Path) -> None:
    plan = plan_of(MINI, Plan.parse("decoder.2.cross=none/reference"))
    (tmp_path / "printed.py").write_text(print_config(MINI, plan, tmp_path))
    torch.manual_seed(0)
    one = build_model(MINI, plan=plan)
    torch.manual_seed(0)
    two = build_model(tmp_path / "printed.py")
    assert one.plan == two.plan == plan
    for (name, a), (other, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b), name


OVERRIDES = {
    "a number of the model": [("model.pts_bbox_head.num_query", "100")],
    "a layer less": [("model.pts_bbox_head.transformer.decoder.num_layers", "2")],
    "an entry of a list": [("model.data_preprocessor.mean.0", "1.5")],
    "a dict without keys": [("optim_wrapper.paramwise_cfg.custom_keys", "{}")],
    "a new key": [("optim_wrapper.optimizer.amsgrad", "true")],
    "a dict for another": [("optim_wrapper.optimizer", '{"type": "SGD", "lr": 0.1}')],
    "a choice, which the plan makes": [
        ("model.pts_bbox_head.transformer.decoder.transformerlayers.attn_cfgs.1.bias", '"none"')
    ],
}


@pytest.mark.parametrize("overrides", OVERRIDES.values(), ids=OVERRIDES)
def test_a_printed_plan_keeps_the_overrides(overrides: list[tuple[str, str]], tmp_path: Path) -> None:
    plan = Plan.parse("decoder.*.cross=gaussian/sdpa_math;decoder.*.self=none/sdpa_math;aqr.*=none/reference")
    printed = tmp_path / "printed.py"
    printed.write_text(print_config(MINI, plan, tmp_path, overrides))
    model = build_model(MINI, overrides, plan)
    assert plan_of(printed) == model.plan
    found, expected = load_config(printed), load_config(MINI, overrides)
    assert found.optim_wrapper == {"constructor": "CmtOptimWrapperConstructor", **expected.optim_wrapper}
    shapes = {name: value.shape for name, value in model.pts_bbox_head.state_dict().items()}
    assert {name: value.shape for name, value in head_of(printed).items()} == shapes
    for cfg in (found, expected):
        cfg.model.pts_bbox_head.transformer.decoder.pop("transformerlayers")
        cfg.model.pts_bbox_head.aqr_config.encoder_config.pop("transformerlayers")
    assert found.model == expected.model


def test_an_override_of_autocast_is_kept_with_what_it_takes_away(tmp_path: Path) -> None:
    config, overrides = f"experiments/configs/{FULL_SIZE[2]}", [("optim_wrapper.type", '"OptimWrapper"')]
    assert "dtype" in load_config(config).optim_wrapper
    (tmp_path / "printed.py").write_text(print_config(config, plan_of(config), tmp_path, overrides))
    assert load_config(tmp_path / "printed.py").optim_wrapper == load_config(config, overrides).optim_wrapper


def test_a_flag_gives_way_to_the_implementation_that_it_means(tmp_path: Path) -> None:
    flag = tmp_path / "flag.py"
    flag.write_text(
        f'''_base_ = ["{ROOT / MINI}"]
_attention = dict(embed_dims=96, num_heads=2)
model = dict(pts_bbox_head=dict(transformer=dict(decoder=dict(transformerlayers=dict(attn_cfgs=[
    dict(type="MultiheadAttention", **_attention),
    dict(type="PETRMultiheadFlashAttention", bias="global", use_flashbias=True, **_attention),
])))))
'''
    )
    text = there_and_back(str(flag), "", tmp_path).read_text()
    assert "use_flashbias" not in text
    assert text.count('bias="global", impl="lowrank"') + text.count('impl="lowrank",') == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ("decoder.9.*=none/rects", "'decoder.9.*' matches no site; the model has aqr.0.cross"),
        ("decoder.0.self=window/rects", "decoder.0.self cannot have the bias 'window'; it takes none"),
        ("decoder.*.cross=window/flash", "decoder.0.cross cannot train with window/flash on any machine"),
        ("decoder.*.cross=window/lowrank", "name a rank to approximate it"),
        ("decoder.*.self=none/flash", "flash: takes NONE, the dense bias has DENSE"),
    ],
)
def test_what_no_machine_can_train_is_refused(changes: str, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence.replace("*", r"\*")):
        plan_of(MINI, Plan.parse(changes))


def test_a_bias_that_nothing_makes_is_refused() -> None:
    with pytest.raises(
        PlanError, match=r"decoder\.0\.cross cannot have the bias 'window': nothing makes it.* --aqr"
    ):
        plan_of(f"experiments/configs/{FULL_SIZE[0]}", Plan.parse("decoder.*.cross=window/rects"))


def test_a_later_pattern_wins() -> None:
    plan = plan_of(MINI, Plan.parse("decoder.*.cross=global/rects;decoder.1.cross=none/rects"))
    assert [str(plan[f"decoder.{i}.cross"]) for i in range(3)] == [
        "global/rects",
        "none/rects",
        "global/rects",
    ]


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": [1.5, None, True], "c": ("x",), "d": {"e": 'it\'s "quoted"'}, "f": (), "g": {}},
        {f"key{i}": [{"type": "x" * 30, "other": ("y" * 30, -1e-3)}] for i in range(4)},
    ],
)
def test_printed_values_read_back(value: object) -> None:
    text = literal(value)
    assert eval(text) == value
    assert max(map(len, text.splitlines())) <= 110
