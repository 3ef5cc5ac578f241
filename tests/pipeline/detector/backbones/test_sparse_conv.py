"""The sparse encoder on spconv, and the sentence without it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet3d.models.layers.spconv import IS_SPCONV2_AVAILABLE
from mmdet3d.registry import MODELS
from mmengine.registry import init_default_scope
from threadpoolctl import threadpool_limits

from pipeline.detector.backbones.half_encoder import encode
from pipeline.detector.backbones.sparse_conv import (
    SparseConvError,
    build_sparse_encoder,
    scatter_nd,
    to_spconv2,
)
from pipeline.detector.build import build_model, load_config
from pipeline.detector.weights import load_weights, save_weights

CONFIG = "experiments/configs/cmt_voxel0100_r50_800x320_cbgs.py"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REPEATS = 60
"""In 16 threads on two cores, one pass in ten had a wrong voxel."""

needs_spconv = pytest.mark.skipif(not IS_SPCONV2_AVAILABLE, reason="spconv is not installed (extra gpu)")


def encoder_config() -> dict[str, Any]:
    """Return the published encoder on a small grid."""
    init_default_scope("mmdet3d")
    cfg = dict(load_config(CONFIG).model.pts_middle_encoder)
    return {**cfg, "sparse_shape": [41, 64, 64]}


def voxels() -> tuple[torch.Tensor, torch.Tensor]:
    place = torch.unique(torch.randint(1_000_000, (600,)))
    coords = torch.stack([place % 2, place // 2 % 40, place // 80 % 64, place // 5120 % 64], dim=1)
    coords = torch.unique(coords, dim=0)
    return torch.randn(len(coords), 5, device=DEVICE), coords.to(DEVICE)


def test_on_the_meta_device_shapes_are_those_of_spconv_2() -> None:
    with torch.device("meta"):
        state = build_sparse_encoder(encoder_config()).state_dict()
    assert tuple(state["conv_input.0.weight"].shape) == (16, 3, 3, 3, 5)
    assert tuple(state["conv_out.0.weight"].shape) == (128, 3, 1, 1, 128)


def test_the_layouts_agree_element_by_element() -> None:
    old = torch.arange(3 * 1 * 2 * 4 * 5).reshape(3, 1, 2, 4, 5)
    new = to_spconv2(old)
    assert new.shape == (5, 3, 1, 2, 4)
    assert new[4, 2, 0, 1, 3] == old[2, 0, 1, 3, 4]


@pytest.mark.skipif(IS_SPCONV2_AVAILABLE, reason="spconv is installed")
def test_without_spconv_a_full_size_config_is_refused_in_one_sentence() -> None:
    with pytest.raises(
        SparseConvError, match=r"needs spconv 2, which is not installed; pip install 'biaswise"
    ):
        build_model(CONFIG)


@needs_spconv
def test_shared_tables_change_nothing() -> None:
    shared, own = build_sparse_encoder(encoder_config()), MODELS.build(encoder_config())
    own.load_state_dict(shared.state_dict())
    own.half_when_frozen = shared.half_when_frozen  # what ``encode`` reads, and mmdet3d's own does not have
    keys = [m.indice_key for m in shared.modules() if getattr(m, "subm", False)]
    assert keys == ["subm1"] * 5 + ["subm2"] * 4 + ["subm3"] * 4 + ["subm4"] * 4
    features, coords = voxels()
    with torch.no_grad():
        one, other = (encode(encoder.eval().to(DEVICE), features, coords, 2) for encoder in (shared, own))
    # A GPU lists the voxels of a stage in another order each time, and sums end in other bits then. A table
    # of other neighbours would change whole voxels.
    limit = 1e-5 * float(other.abs().max()) if DEVICE == "cuda" else 0.0
    assert float((one - other).abs().max()) <= limit


@needs_spconv
@pytest.mark.skipif(
    DEVICE == "cuda", reason="a GPU has no threads; CUDA_VISIBLE_DEVICES= runs it on the host"
)
def test_threads_of_a_cpu_do_not_add_into_one_anothers_voxels() -> None:
    encoder = build_sparse_encoder(encoder_config()).eval()
    features, coords = voxels()
    with torch.no_grad(), threadpool_limits(16, user_api="openmp"):
        first = encode(encoder, features, coords, 2)
        assert all(torch.equal(encode(encoder, features, coords, 2), first) for _ in range(REPEATS))


@needs_spconv
def test_weights_come_back_as_they_were_saved(tmp_path: Path) -> None:
    encoder = build_sparse_encoder(encoder_config())
    other = copy.deepcopy(encoder)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    save_weights(encoder, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")  # turned if the versions of the layers get lost
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in encoder.state_dict().items())


@needs_spconv
@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device: spconv's backward asks for a stream")
def test_gradients_with_shared_tables_are_those_without() -> None:
    shared, own = (build(encoder_config()).to(DEVICE) for build in (build_sparse_encoder, MODELS.build))
    own.load_state_dict(shared.state_dict())
    features, coords = voxels()
    for encoder in (shared, own):
        encoder.train()(features, coords, 2).square().sum().backward()
    for (name, a), b in zip(shared.named_parameters(), own.parameters(), strict=True):
        # 1e-4: atomic additions of fp32 on a GPU come in another order each time
        assert (a.grad - b.grad).abs().max() <= 1e-4 * b.grad.abs().max(), name


def test_scatter_nd_writes_each_row_to_its_place() -> None:
    indices, rows = torch.tensor([[1, 0], [0, 2]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = scatter_nd(indices, rows, [2, 3, 2])
    assert found[1, 0].tolist() == [1, 2]
    assert found[0, 2].tolist() == [3, 4]
    assert found.sum() == rows.sum()
