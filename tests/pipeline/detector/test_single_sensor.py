"""CMT's camera-only and LiDAR-only models: built, trained, planned; and they are the fusion model's parts."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from operators.grid import CAMERA, LIDAR
from pipeline.config.plan import Plan, PlanError
from pipeline.config.settings import TrialSettings
from pipeline.data.formats.open import open_source
from pipeline.data.sample import DataError, Sample
from pipeline.data.source import Reading
from pipeline.detector.backbones.lidar_branch import BranchError
from pipeline.detector.build import build_model
from pipeline.detector.cmt_detector import CmtDetector
from pipeline.detector.head.task_head import GroupedLinear
from pipeline.detector.openmmlab.data_samples import collate
from pipeline.detector.transformer.position_encoding import Cameras
from pipeline.metrics.rows import read_rows, select
from pipeline.runtime.session import LocalSession
from pipeline.training.trial import run_trial
from tests.pipeline.conftest import OVERRIDES

MINI = "experiments/configs/cmt_aqr_pillar_mini.py"
SMALL = {"model.pts_bbox_head.num_query": 20, "model.pts_bbox_head.bbox_coder.max_num": 20}
ALL_TRAIN = {"optim_wrapper.paramwise_cfg.custom_keys": {}}
CAMERAS = {**ALL_TRAIN, "model.pts_bbox_head.type": "CmtImageHead", "model.pts_branch": None}
BEV = {
    **ALL_TRAIN,
    "model.pts_bbox_head.type": "CmtLidarHead",
    "model.pts_bbox_head.separate_head.final_kernel": 3,
    "model.image_size": None,
    "model.img_backbone": None,
    "model.img_neck": None,
}
MakeSample = Callable[..., Sample]
Trial = Callable[..., TrialSettings]


def spelled(values: dict[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple((key, json.dumps(value)) for key, value in values.items())


def plan_of(kind: str, impl: str) -> Plan:
    others = {"decoder.*.self": "none/sdpa_math", "aqr.*": "local/sdpa_math"}
    return Plan.of(others | {"decoder.*.cross": f"{kind}/{impl}"})


def built(changes: dict[str, object], plan: Plan | None = None) -> CmtDetector:
    return build_model(MINI, spelled(SMALL | changes), plan)


@pytest.mark.parametrize(("changes", "missing"), [(CAMERAS, "shared_conv"), (BEV, "rv_embedding")])
def test_they_have_the_parameters_of_the_fusion_model_less_one_branch(changes, missing) -> None:
    model, whole = built(changes), built({"model.pts_bbox_head.separate_head.final_kernel": 1})
    own, all_names = set(model.state_dict()), set(whole.state_dict())
    assert own < all_names
    branch = ("pts_branch",) if changes is CAMERAS else ("img_backbone", "img_neck")
    left_out = (*branch, f"pts_bbox_head.{missing}")
    assert all_names - own == {name for name in all_names if name.startswith(left_out)}


@pytest.mark.parametrize("changes", [CAMERAS, BEV], ids=["cameras", "lidar"])
@pytest.mark.parametrize("kind", ["none", "window"])
def test_two_steps_train_every_parameter(changes, kind, make_sample: MakeSample) -> None:
    model = built(changes, plan_of(kind, "sdpa_math")).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(2):
        samples = [make_sample(0), make_sample(1)]
        if changes is BEV:
            samples = [replace(sample, images=sample.images[:, :0, :0]) for sample in samples]
        data = model.data_preprocessor(collate(samples), training=True)
        total, logs = model.parse_losses(model(**data, mode="loss"))
        assert total.isfinite()
        assert "dn_loss_cls" in logs
        optimizer.zero_grad()
        total.backward()
        unused = ("aqr", "bias_generator") if kind == "none" else ()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == (not any(part in name for part in unused)), name
            assert parameter.grad is None or parameter.grad.isfinite().all(), name
        optimizer.step()


def test_a_plan_that_does_not_fit_is_refused_and_one_that_does_is_taken() -> None:
    model = built(CAMERAS)
    model.apply_plan(plan_of("global", "lowrank"))
    assert str(model.plan["decoder.0.cross"]) == "global/lowrank"
    with pytest.raises(PlanError, match=r"decoder.0.cross: window/sdpa_flash cannot run"):
        model.apply_plan(plan_of("window", "sdpa_flash"))


@pytest.mark.parametrize("sensor", [LIDAR, CAMERA], ids=["lidar", "cameras"])
def test_they_compute_what_the_fusion_model_computes_from_their_keys(
    sensor: int, make_sample: MakeSample
) -> None:
    plain = {"model.pts_bbox_head.separate_head.final_kernel": 1}
    plan = Plan.of({"*": "none/sdpa_math"})
    whole, model = built({}, plan), built((BEV if sensor == LIDAR else CAMERAS) | plain, plan)
    model.load_state_dict(whole.state_dict(), strict=False)
    data = whole.data_preprocessor(collate([make_sample(0)]), training=False)
    head, single = whole.pts_bbox_head, model.pts_bbox_head
    with torch.no_grad():
        features = whole.extract_feat(data["inputs"])
        matrices = torch.from_numpy(data["data_samples"][0].metainfo["lidar2img"])[None]
        cameras, pad_hw = Cameras.of(matrices, torch.device("cpu")), (96, 240)
        memory = head.make_memory(*features, cameras, pad_hw)
        num_bev = memory.grid.segments[0].num_keys
        keys = slice(None, num_bev) if sensor == LIDAR else slice(num_bev, None)
        points = head.reference_points.weight[None]
        of_bev, of_img = head.query_embeddings(points, memory)
        query_pos = of_bev if sensor == LIDAR else of_bev + of_img
        states = head.transformer.decoder(memory.keys[:, keys], memory.tokens[:, keys], query_pos)
        expected = head.predict_boxes(states, points)
        if sensor == LIDAR:
            data["inputs"]["imgs"] = data["inputs"]["imgs"][..., :0, :0]
        found = single(*model.extract_feat(data["inputs"]), matrices, pad_hw).matching
    torch.testing.assert_close(found.codes, expected.codes)
    torch.testing.assert_close(found.logits, expected.logits)


def test_a_kernel_of_three_is_the_grouped_convolution_of_the_checkpoints() -> None:
    layer = GroupedLinear(groups=4, inputs=5, outputs=3, bias=True, kernel=3)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(4, 2, 7, 5)
    in_groups = x.permute(1, 0, 3, 2).flatten(1, 2)  # (B, groups * C, Q), as CMT arranges it
    expected = F.conv1d(in_groups, layer.weight, layer.bias, padding=1, groups=4)
    torch.testing.assert_close(layer(x), expected.view(2, 4, 3, 7).permute(1, 0, 3, 2))
    torch.testing.assert_close(layer(x[-1:]), layer(x)[-1:])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model.pts_branch": None},
            "CmtAqrHead needs a LiDAR branch and an image branch, and the model has an",
        ),
        ({"model.img_neck": None}, "expected all of image_size, img_backbone, img_neck; img_neck is missing"),
        (
            {"model.pts_bbox_head.type": "CmtLidarHead"},
            "CmtLidarHead needs a LiDAR branch, and the model has a",
        ),
        ({**BEV, "model.pts_branch": None}, "CmtLidarHead needs a LiDAR branch, and the model has none"),
    ],
)
def test_branches_that_are_not_those_of_the_head_are_refused(changes, sentence: str) -> None:
    with pytest.raises(BranchError, match=sentence):
        built(changes)


@pytest.fixture
def blind_dataset(small_dataset: Path, tmp_path: Path) -> Path:
    """The small dataset without a single image."""
    shutil.copytree(small_dataset, tmp_path / "blind")
    for folder in (tmp_path / "blind" / "samples").glob("CAM_*"):
        shutil.rmtree(folder)
    return tmp_path / "blind"


def test_whole_trials_of_one_sensor(trial: Trial, tmp_path: Path, blind_dataset: Path) -> None:
    overrides = tuple(pair for pair in OVERRIDES if "pts_branch" not in pair[0])
    cameras = trial(steps=2, overrides=(*overrides, *spelled(CAMERAS)))
    run_trial(cameras, LocalSession(tmp_path / "cameras"))
    size = tuple(pair for pair in OVERRIDES if pair[0] != "model.image_size")
    lidar = trial(steps=2, overrides=(*size, *spelled(BEV)), conditions=("clean", "occlusion"))
    lidar = replace(lidar, data=replace(lidar.data, train=(str(blind_dataset),), val=str(blind_dataset)))
    run_trial(lidar, LocalSession(tmp_path / "lidar"))  # reads no image: there is none
    for name in ("cameras", "lidar"):
        rows = read_rows(tmp_path / name / "rows.jsonl")
        assert [row.step for row in select(rows, metric="loss")] == [1, 2]
        assert len(list(select(rows, metric="NDS", condition="clean"))) == 1
        assert {row.site for row in rows if row.metric == "kernel_ms"} >= {"decoder.0.cross", "aqr.0.cross"}


def test_images_are_read_unless_a_reading_says_no(blind_dataset: Path) -> None:
    arguments = (blind_dataset, "v1.0-mini", "mini_train")
    assert open_source(*arguments, Reading(images=False))[0].images.shape == (6, 0, 0, 3)
    with pytest.raises(DataError, match="has no image of CAM_FRONT"):
        open_source(*arguments, Reading())[0]
