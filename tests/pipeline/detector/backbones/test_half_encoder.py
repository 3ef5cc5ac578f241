"""Folded batch norms, and when a sparse encoder runs in half precision."""

import copy
from typing import Any

import pytest
import torch
from mmdet3d.models.layers.spconv import IS_SPCONV2_AVAILABLE
from mmdet3d.registry import MODELS
from mmengine.registry import init_default_scope
from torch import nn

from pipeline.detector.backbones.half_encoder import encode, folded, runs_half
from pipeline.detector.backbones.sparse_conv import build_sparse_encoder
from pipeline.detector.build import load_config

CONFIG = "experiments/configs/cmt_voxel0100_r50_800x320_cbgs.py"
HALF = 5e-3
"""Of the map's norm: 21 layers of numbers with 11 bits (5e-4 each) came to 2.9e-3."""


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d])
def test_a_folded_convolution_does_what_both_did(kind: Any) -> None:
    conv = kind(5, 7, 3, padding=1, bias=False)
    norm = (nn.BatchNorm1d if kind is nn.Conv1d else nn.BatchNorm3d)(7, eps=1e-3).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.1, 3)
    x = torch.randn(2, 5, 6) if kind is nn.Conv1d else torch.randn(2, 5, 4, 4, 4)
    made = copy.deepcopy(conv)
    with torch.no_grad():
        weight, bias = folded(conv.weight, norm)
        made.weight, made.bias = nn.Parameter(weight), nn.Parameter(bias)
        torch.testing.assert_close(made(x), norm(conv(x)))


def encoder(half: bool = True) -> Any:
    init_default_scope("mmdet3d")
    cfg = {**dict(load_config(CONFIG).model.pts_middle_encoder), "sparse_shape": [41, 64, 64]}
    if IS_SPCONV2_AVAILABLE:
        return build_sparse_encoder(cfg, half)
    with torch.device("meta"):
        return build_sparse_encoder(cfg, half)


def test_it_runs_in_half_precision_while_nothing_in_it_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    made = encoder().eval().requires_grad_(False)
    assert not runs_half(made)  # without autocast
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")  # refused on a CPU
    assert runs_half(made)
    made.conv_out[0].weight.requires_grad_(True)
    assert not runs_half(made)
    with torch.no_grad():
        assert runs_half(made)
        made.conv_out[1].train()
        assert not runs_half(made)
    assert not runs_half(encoder(half=False).eval().requires_grad_(False))


@pytest.mark.parametrize(
    ("overrides", "half"), [((), True), ((("model.half_sparse_encoder", "false"),), False)]
)
def test_the_config_switches_it_off(overrides: tuple[tuple[str, str], ...], half: bool) -> None:
    init_default_scope("mmdet3d")
    with torch.device("meta"):
        model = MODELS.build(load_config(CONFIG, overrides).model)
    assert model.pts_middle_encoder.half_when_frozen == half


@pytest.mark.gpu
@pytest.mark.skipif(not IS_SPCONV2_AVAILABLE, reason="spconv is not installed (extra gpu)")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: float16 kernels")
def test_half_precision_is_near_single_and_follows_the_weights() -> None:
    made = encoder().cuda().eval().requires_grad_(False)
    place = torch.randperm(2 * 40 * 64 * 64)[:20_000].sort().values
    columns = [place // 163_840, place // 4096 % 40, place // 64 % 64, place % 64]
    coords = torch.stack(columns, dim=1).cuda()
    features = torch.rand(len(place), 5, device="cuda") * 54
    for _ in range(2):
        for norm in (m for m in made.modules() if isinstance(m, nn.BatchNorm1d)):
            nn.init.normal_(norm.weight, 1.0, 0.2)
            nn.init.normal_(norm.bias, 0.0, 0.2)
        expected = made(features, coords, 2)
        with torch.autocast("cuda", torch.bfloat16):
            found = encode(made, features, coords, 2)
        assert found.dtype == torch.float16
        assert found.shape == expected.shape
        assert (found.float() - expected).norm() <= HALF * expected.norm()
