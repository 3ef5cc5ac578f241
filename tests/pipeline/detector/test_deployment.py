"""A model made ready for inference detects what it detected before."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from pipeline.detector.build import build_model
from pipeline.detector.deployment import for_inference, held_by_training_graphs
from pipeline.detector.openmmlab.data_samples import collate

CONFIG = "experiments/configs/cmt_aqr_pillar_mini.py"


def outputs(model: Any, sample: Any, amp: bool) -> Any:
    batch = model.data_preprocessor(collate([sample]), False)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        return model(**batch, mode="tensor").matching


def with_statistics(model: Any) -> Any:
    """Give batch norms means, variances and scales that folding cannot ignore."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def test_folding_changes_the_last_bits_alone(make_sample: Any) -> None:
    model, sample = with_statistics(build_model(CONFIG)), make_sample()
    before = outputs(model, sample, amp=False)
    after = outputs(for_inference(model), sample, amp=False)
    left = [m for m in model.img_backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == []
    for a, b in ((before.codes, after.codes), (before.logits, after.logits)):
        # 1e-4 of the largest: fp32 rounding of the folded weights through forty layers
        assert (a - b).abs().max() <= 1e-4 * a.abs().max()


def test_casting_the_weights_once_is_what_autocast_does_each_time(make_sample: Any) -> None:
    sample = make_sample()
    once = for_inference(with_statistics(build_model(CONFIG)), torch.bfloat16)
    torch.manual_seed(0)
    each = for_inference(with_statistics(build_model(CONFIG)))
    each.load_state_dict({k: v.to(each.state_dict()[k].dtype) for k, v in once.state_dict().items()})
    a, b = outputs(once, sample, amp=True), outputs(each, sample, amp=True)
    assert torch.equal(a.codes, b.codes)
    assert torch.equal(a.logits, b.logits)


def test_the_memory_of_all_training_graphs_counts() -> None:
    head, lidar = SimpleNamespace(held_bytes=3), SimpleNamespace(held_bytes=4)
    for branch, held in ((None, 3), (lidar, 7)):
        model = SimpleNamespace(pts_bbox_head=SimpleNamespace(train_graphs=head), lidar_graphs=branch)
        assert held_by_training_graphs(model) == held
