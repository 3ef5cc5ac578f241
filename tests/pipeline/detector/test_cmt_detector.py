"""The whole detector: losses, predictions, lost sensors, and mmengine's own training step."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor

from pipeline.config.plan import Plan
from pipeline.data.sample import Sample
from pipeline.detector.build import build_model
from pipeline.detector.cmt_detector import CmtDetector
from pipeline.detector.openmmlab.data_samples import collate, to_detections

MINI = "experiments/configs/cmt_aqr_pillar_mini.py"
SMALL = [("model.pts_bbox_head.num_query", "20"), ("model.pts_bbox_head.bbox_coder.max_num", "20")]
MakeSample = Callable[..., Sample]


@pytest.fixture
def model() -> CmtDetector:
    torch.manual_seed(0)
    return build_model(MINI, SMALL)


def losses_of(model: CmtDetector, samples: list[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    data = model.data_preprocessor(collate(samples), training=True)
    total, logs = model.parse_losses(model(**data, mode="loss"))
    return total, dict(logs)


def predict(model: CmtDetector, samples: list[Sample]) -> list[Tensor]:
    with torch.no_grad():
        data = model.data_preprocessor(collate(samples), training=False)
        found = to_detections(model(**data, mode="predict"))
    return [torch.cat([torch.from_numpy(d.boxes), torch.from_numpy(d.scores)[:, None]], dim=1) for d in found]


def test_every_trainable_parameter_gets_a_finite_gradient(
    model: CmtDetector, make_sample: MakeSample
) -> None:
    total, logs = losses_of(model.train(), [make_sample(0), make_sample(1)])
    assert total.isfinite()
    assert {"loss", "loss_cls", "loss_bbox", "d0.loss_cls", "dn_loss_cls"} <= set(logs)
    total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert model.bias_scale is not None
    assert model.bias_scale.grad is not None
    assert model.bias_scale.grad.abs() > 0


def test_the_same_seed_gives_the_same_losses_bit_for_bit(make_sample: MakeSample) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        model = build_model(MINI, SMALL).train()
        total, _ = losses_of(model, [make_sample(0)])
        total.backward()
        runs.append([total.detach(), *[p.grad for p in model.parameters() if p.grad is not None]])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_batch_predicts_what_its_samples_predict_alone(model: CmtDetector, make_sample: MakeSample) -> None:
    samples = [make_sample(0), make_sample(1, num_points=0), make_sample(2, num_boxes=0)]
    together = predict(model, samples)
    for sample, expected in zip(samples, together, strict=True):
        # 1e-3 m: a batch of another size sums in another order; coordinates reach 61 m
        torch.testing.assert_close(predict(model, [sample])[0], expected, rtol=1e-4, atol=1e-3)


def test_lost_sensors_still_give_finite_boxes_and_losses(model: CmtDetector, make_sample: MakeSample) -> None:
    sample = make_sample(0)
    no_lidar = replace(sample, points=sample.points[:0])
    no_cameras = replace(sample, images=sample.images * 0)
    nothing = replace(no_lidar, images=sample.images * 0)
    for lost in (no_lidar, no_cameras, nothing):
        assert predict(model.eval(), [lost])[0].isfinite().all()
        assert losses_of(model.train(), [lost])[0].isfinite()


def test_each_sensor_reaches_the_predictions(model: CmtDetector, make_sample: MakeSample) -> None:
    sample = make_sample(0)
    (full,) = predict(model, [sample])
    (no_lidar,) = predict(model, [replace(sample, points=sample.points[:0])])
    (no_cameras,) = predict(model, [replace(sample, images=sample.images * 0)])
    assert not torch.allclose(full, no_lidar)
    assert not torch.allclose(full, no_cameras)


def test_the_implementation_does_not_change_the_losses(model: CmtDetector, make_sample: MakeSample) -> None:
    samples = [make_sample(0)]
    values = []
    for impl in ("sdpa_math", "reference"):
        plan = f"aqr*=local/{impl};*.self=none/{impl};decoder.*.cross=window/{impl}"
        model.eval().apply_plan(Plan.parse(plan))
        torch.manual_seed(5)
        values.append(losses_of(model, samples)[0])
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=0)  # fp32, another order of summation


def test_the_bias_kind_does_change_them(model: CmtDetector, make_sample: MakeSample) -> None:
    values = []
    for kind in ("none", "global", "window", "gaussian"):
        plan = f"aqr*=local/sdpa_math;*.self=none/sdpa_math;decoder.*.cross={kind}/sdpa_math"
        model.eval().apply_plan(Plan.parse(plan))
        torch.manual_seed(5)
        values.append(float(losses_of(model, [make_sample(0)])[0].detach()))
    assert len(set(values)) == len(values)


def test_it_trains_under_mmengine_s_own_step(model: CmtDetector, make_sample: MakeSample) -> None:
    wrapper = OptimWrapper(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4))
    before = model.pts_bbox_head.reference_points.weight.detach().clone()
    logs = model.train().train_step(collate([make_sample(0)]), wrapper)
    assert logs["loss"].isfinite()
    assert not torch.equal(model.pts_bbox_head.reference_points.weight, before)
    (found,) = model.val_step(collate([make_sample(0)]))
    assert len(found.pred_instances_3d) > 0


def test_frozen_branches_stay_bit_for_bit(model: CmtDetector, make_sample: MakeSample) -> None:
    frozen = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("pts_bbox_head")}
    losses_of(model.train(), [make_sample(0)])[0].backward()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in frozen.items())


@pytest.mark.parametrize("norm_eval", [True, False])
def test_norm_eval_keeps_the_statistics_of_norms_that_train(norm_eval: bool, make_sample: MakeSample) -> None:
    model = build_model(MINI, [*SMALL, ("model.norm_eval", json.dumps(norm_eval))]).train()
    norm = model.pts_bbox_head.shared_conv.bn
    before = norm.running_mean.clone()
    losses_of(model, [make_sample(0)])[0].backward()
    assert torch.equal(norm.running_mean, before) == norm_eval
    assert norm.weight.grad is not None, "its scale is learned all the same"


def test_a_model_without_aqr_builds_and_refuses_a_bias(make_sample: MakeSample) -> None:
    head = "model.pts_bbox_head"
    layers = f"{head}.transformer.decoder.transformerlayers"
    plain = [
        (f"{head}.aqr_config", "null"),
        (f"{head}.bias_config", "null"),
        (f"{layers}.attn_cfgs.1.bias", '"none"'),
        ("optim_wrapper.paramwise_cfg.custom_keys", json.dumps({"img_": {"lr_mult": 0}})),
    ]
    model = build_model(MINI, [*SMALL, *plain])
    assert model.bias_scale is None
    assert not any(site.startswith("aqr") for site in model.sites)
    assert losses_of(model.train(), [make_sample(0)])[0].isfinite()
    with pytest.raises(ValueError, match="no bias generator"):
        model.apply_plan(Plan.parse("*.self=none/sdpa_math;*.cross=window/sdpa_math"))
