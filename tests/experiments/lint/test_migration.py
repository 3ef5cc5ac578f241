"""Configs of mmcv 1.x: recognised, and migrated to the same parameters, learning rates and augmentation."""

import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.registry import init_default_scope

from experiments.cli import main
from experiments.lint.check import lint
from experiments.lint.finding import LintError
from experiments.lint.migration.migrate import migrate
from experiments.lint.migration.report import read_previous, write_today
from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.data.augmentation.train_pipeline import read_train_pipeline
from pipeline.data.formats.open import open_source
from pipeline.data.source import Reading
from pipeline.detector.build import load_config
from pipeline.metrics.rows import read_rows, select
from pipeline.runtime.session import LocalSession
from pipeline.storage.paths import ROOT
from pipeline.training.trial import run_trial
from tests.pipeline.conftest import settings_on, small_dataset  # noqa: F401  a fixture

PREVIOUS = Path(__file__).parent / "previous"
FUSION, CAMERAS, BEV = (PREVIOUS / f"{name}.py" for name in ("fusion", "cameras", "lidar"))
SHIPPED = ROOT / "experiments/configs/cmt_voxel0100_r50_800x320_cbgs.py"


def migrated(old: Path, folder: Path) -> Path:
    out = folder / f"new_{old.name}"
    write_today(old, out)
    return out


@pytest.mark.parametrize("old", [FUSION, CAMERAS, BEV], ids=lambda path: path.stem)
def test_lint_says_first_what_it_is(old: Path) -> None:
    report = lint(old)
    (wrong,) = report.wrong
    assert (wrong.rule, wrong.sentence.partition(",")[0]) == ("mmcv-1", "this is a config of mmcv 1.x")
    assert "--fix --out NEW.py" in wrong.advice
    assert old.read_text().splitlines()[wrong.place.line - 1].startswith("optimizer = ")
    if "loss_scale" in old.read_text():
        assert ["training is bfloat16" in note.sentence for note in report.notes].count(True) == 1
    assert report.sites == ()


@pytest.mark.parametrize("config", sorted((ROOT / "experiments/configs").glob("*.py")), ids=lambda p: p.stem)
def test_configs_of_today_are_not_taken_for_old_ones(config: Path) -> None:
    assert read_previous(config) is None


def test_what_has_no_counterpart_is_listed_and_what_matters_comes_first() -> None:
    notes = [note for note in lint(FUSION).notes if note.rule == "no-counterpart"]
    listed = {str(note.key[-1]) for note in notes}
    assert listed == {
        "loss_scale", "13", "0", "test_cfg", "downsample_scale", "loss_heatmap", "voxel_size", "dataset",
        "feedforward_channels", "grid_size", "custom_fp16", "checkpoint_config", "unused_switch",
    }  # fmt: skip
    matter = [note.sentence for note in notes if "differs" in note.advice]
    assert [sentence.split(" is left out")[0] for sentence in matter] == [
        "the step PhotoMetricDistortionMultiViewImage",
        "EMAHook's average begins with the weights after the first step, not with those before it",
    ]  # fmt: skip
    assert [note.sentence for note in notes[: len(matter)]] == matter
    run = next(note.sentence for note in notes if note.key == ("checkpoint_config",))
    for name in ("log_config", "dist_params", "workflow", "find_unused_parameters"):
        assert f"{name}: " in run


def test_what_a_training_differs_by_stands_at_the_top_of_the_new_file(tmp_path: Path) -> None:
    text = migrated(FUSION, tmp_path).read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments[0] == "# A training with this config differs from one with fusion.py:"
    assert comments[1].startswith("# - the step PhotoMetricDistortionMultiViewImage is left out")
    assert "loss_scale" not in text


def test_a_class_of_a_plugin_is_told_with_the_way_to_name_it(tmp_path: Path) -> None:
    old, module = tmp_path / "plugin.py", tmp_path / "my_fpn.py"
    old.write_text('plugin_dir = "projects/mine/"\n' + FUSION.read_text().replace("CPFPN", "MyFPN"))
    note = next(note for note in lint(old).notes if "MyFPN" in note.sentence)
    assert note.key == ("plugin_dir",)
    assert "name the module of each class in custom_imports" in note.advice
    new = migrated(old, tmp_path)
    assert "# - no registry has MyFPN; plugin_dir=" in new.read_text()
    wrong = next(finding for finding in lint(new).wrong if "MyFPN" in finding.sentence)
    assert wrong.sentence.startswith("img_neck cannot be built: MyFPN is not in the mmdet3d::model registry")
    assert not wrong.sentence.endswith(".")
    assert wrong.advice.endswith("name the module of your own class in custom_imports")
    module.write_text(
        "from mmdet3d.registry import MODELS\nfrom pipeline.detector.backbones.image import CPFPN\n"
        "MODELS.register_module(name='MyFPN', module=type('MyFPN', (CPFPN,), {}))\n"
    )
    new.write_text(
        new.read_text().replace('"pipeline.detector.runner"', '"pipeline.detector.runner", "my_fpn"')
    )
    sentence = "import sys; from experiments.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", sentence, "lint", str(new)],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_loss_scale_is_told_once() -> None:
    lost = migrate({"fp16": {"loss_scale": 512.0}, "optimizer_config": {"loss_scale": 512.0}}).lost
    assert [entry.key for entry in lost] == [("fp16", "loss_scale")]


def test_imports_of_the_old_config_stay() -> None:
    imports = migrate({"custom_imports": {"imports": ["mine"]}}).config["custom_imports"]["imports"]
    assert imports == ["pipeline.detector.runner", "mine"]


def shapes(model: dict[str, Any]) -> dict[str, torch.Size]:
    init_default_scope("mmdet3d")
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in MODELS.build(model).state_dict().items()}


def test_the_migrated_model_has_the_parameters_of_the_published_one(tmp_path: Path) -> None:
    new = load_config(migrated(FUSION, tmp_path))
    assert shapes(new.model) == shapes(load_config(SHIPPED).model)
    assert new.load_from == "ckpts/nuim_r50.pth"
    assert new.custom_hooks == [{"type": "EMAHook", "momentum": 0.0002}]
    wrapper, shipped = (c.optim_wrapper.to_dict() for c in (new, load_config(SHIPPED)))
    assert wrapper == shipped


def test_a_migrated_model_with_vovnet_has_the_parameters_of_the_published_one() -> None:
    old = read_previous(FUSION)
    assert old is not None
    vovnet = {"spec_name": "V-99-eSE", "norm_eval": True, "frozen_stages": -1, "input_ch": 3}
    model = {
        **old["model"],
        "img_backbone": {"type": "VoVNet", **vovnet, "out_features": ("stage4", "stage5")},
        "img_neck": {**old["model"]["img_neck"], "in_channels": [768, 1024]},
    }
    published = load_config(SHIPPED.with_name("cmt_voxel0075_vov_1600x640_cbgs.py"))
    assert shapes(migrate({**old, "model": model}).config["model"]) == shapes(published.model)


def test_what_only_another_repository_has_is_told(tmp_path: Path) -> None:
    """MoME's config names its own detector and head, and masks a sensor in the pipeline of evaluation."""
    text = FUSION.read_text()
    for ours, theirs in (
        ('"CmtDetector"', '"MoME"'),
        ('"CmtHead"', '"MultiExpertDecoding"'),
        (
            "test_pipeline = [\n    *load,",
            'test_pipeline = [*load, dict(type="ModalMask3D", mask_modal="points"),',
        ),
        ('dict(type="EMAHook", momentum=0.0002)', 'dict(type="FreezeWeight", finetune_weight=["encoder"])'),
    ):
        assert ours in text
        text = text.replace(ours, theirs)
    config = tmp_path / "mome.py"
    config.write_text(text)
    report = lint(config)
    assert [(f.rule, f.sentence.split(" is ")[0]) for f in report.wrong] == [
        ("mmcv-1", "this"), ("cannot-build", "MoME"), ("cannot-build", "MultiExpertDecoding"),
    ]  # fmt: skip
    assert [f.place.line for f in report.wrong[1:]] == [
        line for line, words in enumerate(text.splitlines(), 1) if "MoME" in words or "MultiExpert" in words
    ]
    matter = [note.sentence.split(" is left out")[0] for note in report.notes if "differs" in note.advice]
    assert matter == [
        "the step PhotoMetricDistortionMultiViewImage", "the step ModalMask3D of evaluation",
        "the hook FreezeWeight",
    ]  # fmt: skip


@pytest.mark.parametrize("sensor", ["lidar", "cameras"])
def test_full_size_models_of_one_sensor_are_parts_of_the_published_one(sensor: str) -> None:
    old = read_previous(FUSION)
    assert old is not None
    parts = (
        ("img_backbone", "img_neck", "use_grid_mask") if sensor == "lidar" else ("pts_v", "pts_m", "pts_n")
    )
    dropped = (*parts, "pts_backbone") if sensor == "cameras" else parts
    head = {**old["model"]["pts_bbox_head"], "type": "CmtLidarHead" if sensor == "lidar" else "CmtImageHead"}
    kept = {key: value for key, value in old["model"].items() if not key.startswith(dropped)}
    if sensor == "lidar":
        head["separate_head"] = {**head["separate_head"], "final_kernel": 3}
        old["data"]["train"]["dataset"]["pipeline"] = []
    found = shapes(migrate({**old, "model": {**kept, "pts_bbox_head": head}}).config["model"])
    published = shapes(load_config(SHIPPED).model)
    gone = (*dropped, f"pts_bbox_head.{'rv_embedding' if sensor == 'lidar' else 'shared_conv'}")
    assert found.keys() == {name for name in published if not name.startswith(gone)}
    kernels = {name for name, shape in found.items() if shape != published[name]}
    assert all("task_heads" in name and found[name][2] == 3 for name in kernels)
    assert bool(kernels) == (sensor == "lidar")


def test_the_migrated_data_are_those_of_the_published_config(tmp_path: Path) -> None:
    ours, published = (load_config(p).to_dict() for p in (migrated(FUSION, tmp_path), SHIPPED))
    one, other = read_train_pipeline(ours), read_train_pipeline(published)
    assert one is not None
    assert other is not None
    assert [type(step) for step in one.steps] == [type(step) for step in other.steps]
    for mine, theirs in zip(one.steps, other.steps, strict=True):
        assert normal(asdict(mine)) == normal(asdict(theirs))  # type: ignore[call-overload]
    assert (one.reading, one.val_reading, one.balanced, one.size) == (
        other.reading, other.val_reading, other.balanced, other.size
    )  # fmt: skip
    for loader in ("train_dataloader", "val_dataloader"):
        for key in ("batch_size", "num_workers", "sampler"):
            assert ours[loader][key] == published[loader][key]
    assert ours["val_evaluator"] == published["val_evaluator"]
    inner = ours["train_dataloader"]["dataset"]["dataset"]
    expected = published["train_dataloader"]["dataset"]["dataset"]
    for key in ("type", "data_root", "ann_file", "metainfo", "modality", "data_prefix", "test_mode"):
        assert inner[key] == expected[key], key


def normal(value: Any) -> Any:
    """Values of a config with lists for tuples, and one way to name all five columns of a point.

    ``data_root`` of a sampler is None in CMT's configs, which here is the folder of ``info_path``.
    """
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if key != "data_root"}
        return {key: 5 if key == "use_dim" else normal(inner) for key, inner in kept.items()}
    return [normal(inner) for inner in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_same_seed_augments_a_frame_alike(seed: int, tmp_path: Path, small_dataset: Path) -> None:  # noqa: F811
    """The cameras' steps, drawn here as CMT's code draws and computes them: turn, scale, cut."""
    pipeline = read_train_pipeline(load_config(migrated(CAMERAS, tmp_path)).to_dict())
    assert pipeline is not None
    frame = open_source(small_dataset, "v1.0-mini", "mini_train", Reading())[0]
    found = pipeline.at(0)(frame, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    angle, scale = rng.uniform(-0.3925, 0.3925), rng.uniform(0.95, 1.05)
    rng.normal(0, [0, 0, 0], 3)  # ours draws a shift too, which is 0
    turn = np.eye(4)
    turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    stretch = np.diag([scale, scale, scale, 1.0])
    moved = frame.lidar2img @ np.linalg.inv(turn) @ np.linalg.inv(stretch)
    resize, _ = rng.uniform(0.28, 0.35), rng.uniform(0, 0)
    width, height = int(400 * resize), int(225 * resize)
    left, flip = int(rng.uniform() * (width - 112)), bool(rng.integers(2))
    cut = np.eye(4)
    cut[0, 0], cut[1, 1], cut[0, 2], cut[1, 2] = width / 400, height / 225, -left, -(height - 48)
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0]) if flip else np.eye(4)
    mirror[0, 2] = 112 if flip else 0
    np.testing.assert_allclose(found.lidar2img, mirror @ cut @ moved, rtol=1e-9, atol=1e-6)
    centres = np.concatenate([frame.boxes[:, :3], np.ones((len(frame.boxes), 1))], 1) @ (stretch @ turn).T
    kept = (np.abs(centres[:, :2]) < 54).all(axis=1)
    np.testing.assert_allclose(found.boxes[:, :3], centres[kept, :3], rtol=1e-5, atol=1e-4)
    assert found.images.shape == (6, 48, 112, 3)


def test_steps_of_the_lidar_alone_are_those_that_also_move_cameras(tmp_path: Path) -> None:
    pipeline = read_train_pipeline(load_config(migrated(BEV, tmp_path)).to_dict())
    assert pipeline is not None
    assert [type(step).__name__ for step in pipeline.steps] == [
        "LoadAnnotations3D", "UnifiedObjectSample", "GlobalRotScaleTransAll", "CustomRandomFlip3D",
        "PointsRangeFilter", "ObjectRangeFilter", "ObjectNameFilter", "PointShuffle",
    ]  # fmt: skip
    assert not pipeline.steps[1].sample_2d  # type: ignore[attr-defined]
    assert pipeline.reading.sweeps == 10


@pytest.mark.parametrize("old", [CAMERAS, BEV], ids=lambda path: path.stem)
def test_models_of_one_sensor_train_as_migrated_and_take_a_plan(
    old: Path,
    tmp_path: Path,
    small_dataset: Path,  # noqa: F811
) -> None:
    new = migrated(old, tmp_path)
    text = new.read_text().replace("sample_groups=dict(car=2, truck=3)", "sample_groups=dict()")
    new.write_text(text)  # there is no object database here, and without a number none is opened
    assert [finding.rule for finding in lint(new, "cpu").wrong if finding.rule != "cannot-run"] == []
    plan = Plan.of({"decoder.*.self": "none/sdpa_math", "decoder.*.cross": "none/sdpa_flash"})
    settings: TrialSettings = settings_on(small_dataset, warmup_steps=None, steps=None)
    settings = replace(
        settings, config=str(new), overrides=(("optim_wrapper.type", '"OptimWrapper"'),), plan=plan
    )
    run_trial(settings, LocalSession(tmp_path / "trial"))
    rows = read_rows(tmp_path / "trial" / "rows.jsonl")
    batches = 2 * 2  # two epochs of four frames, two a batch
    steps = batches // (2 if old == CAMERAS else 1)  # cumulative_iters
    assert [row.step for row in select(rows, metric="loss")] == list(range(1, steps + 1))
    assert next(select(rows, metric="loss")).plan.count("none/sdpa_flash") == 2
    assert len(list(select(rows, metric="NDS"))) == 1


def test_the_command_writes_reports_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new.py"
    assert main(["lint", str(FUSION)]) == 1
    assert main(["lint", str(FUSION), "--fix", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.index("mmcv-1") < said.index("decoder.0.cross")
    assert said.rstrip().endswith("new.py")
    for words, sentence in (
        ([str(FUSION), "--fix"], "name the new file: --fix --out NEW.py"),
        ([str(FUSION), "--out", str(out)], "--out names the file that --fix writes"),
        ([str(out), "--fix", "--out", str(tmp_path / "b.py")], "is a config of today"),
    ):
        assert main(["lint", *words]) != 0
        assert sentence in capsys.readouterr().err
    with pytest.raises(LintError, match="name another file"):
        write_today(FUSION, FUSION)


def test_other_ways_to_say_things() -> None:
    old = read_previous(BEV)
    assert old is not None
    repeated = {"type": "RepeatDataset", "times": 2, "dataset": old["data"]["train"]}
    changed = {
        **old,
        "runner": {"type": "IterBasedRunner", "max_iters": 90},
        "lr_config": {"policy": "Plateau"},
        "model": {**old["model"], "pretrained": "x.pth"},
        "data": {**old["data"], "train": repeated},
        "optimizer": {**old["optimizer"], "paramwise_cfg": {"norm_decay_mult": 0.0}},
        "custom_hooks": [{"type": "EMAHook", "momentum": 0.5, "interval": 3}],
    }
    migration = migrate(changed)
    assert migration.config["train_cfg"] == {"type": "IterBasedTrainLoop", "max_iters": 90}
    assert "param_scheduler" not in migration.config
    matter = {entry.key[-1] for entry in migration.lost if entry.matters}
    assert matter == {"lr_config", "train", "norm_decay_mult", 0, "warm_up"}
    assert migration.config["custom_hooks"] == [{"type": "EMAHook", "momentum": 0.125, "interval": 3}]
    assert ("model", "pretrained") in {entry.key for entry in migration.lost}
