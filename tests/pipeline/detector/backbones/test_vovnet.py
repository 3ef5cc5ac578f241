"""VoVNet against the published numbers, and what it refuses."""

from typing import Any

import pytest
import torch

from pipeline.detector.backbones.vovnet import STAGES, VoVNet, VoVNetError

CNN = 1e-5  # relative to the largest value; ours comes within 8e-7


def test_vovnet_gives_the_published_numbers(parity: Any, published: Any) -> None:
    golden = parity.load("vovnet")
    net = parity.fill(VoVNet(out_features=STAGES), "img_backbone.").eval()
    with torch.no_grad():
        found = net(golden["in_img"])
    for name, value in zip(STAGES, found, strict=True):
        assert published.relative_error(value, golden[f"out_{name}"]) <= CNN, name


def test_batch_norms_keep_their_statistics_and_frozen_stages_their_weights() -> None:
    with torch.device("meta"):
        net = VoVNet(frozen_stages=1).train()
        learns = VoVNet(norm_eval=False, frozen_stages=0).train()
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    frozen = {name.partition(".")[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "stage2"}
    training = {name.partition(".")[0] for name, m in learns.named_modules() if "norm" in name and m.training}
    assert training == {"stage2", "stage3", "stage4", "stage5"}


def test_checkpointing_changes_no_gradient() -> None:
    images = torch.randn(1, 3, 32, 32)
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        net = VoVNet("V-39-eSE", out_features=("stage2", "stage3"), with_cp=with_cp).train()
        sum(out.sum() for out in net(images)).backward()
        grads.append([p.grad for p in net.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"spec_name": "V-98"}, "expected one of V-39-eSE, V-57-eSE, V-99-eSE, got 'V-98'"),
        ({"out_features": ("stage5", "stage4")}, "in this order"),
        ({"out_features": ("stage6",)}, "expected some of stem"),
        ({"frozen_stages": 5}, "expected -1 to 4, got 5"),
    ],
)
def test_what_does_not_exist_is_refused(given: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(VoVNetError, match=message):
        VoVNet(**given)
