"""Weights come back bit for bit, or not at all; so do those of the official detectors."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.registry import init_default_scope
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.detector.build import load_config
from pipeline.detector.weights import WeightsError, from_official, load_weights, save_weights, to_official

SIZES = {"r50": "voxel0100_r50_800x320_cbgs", "vov": "voxel0075_vov_1600x640_cbgs"}


class Toy(nn.Module):
    """Names as in the detector."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.pts_bbox_head = nn.ModuleDict({"aqr": nn.Linear(2, 2), "task_heads": nn.Linear(width, 2)})
        self.norm = nn.BatchNorm1d(2)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "weights.safetensors"
    save_weights(Toy(), path)
    return path


def test_parameters_and_buffers_come_back_bit_for_bit(tmp_path: Path) -> None:
    model, other = Toy(), Toy()
    model.norm.running_mean.fill_(0.3)
    save_weights(model, tmp_path / "w.safetensors")
    report = load_weights(other, tmp_path / "w.safetensors")
    assert report.loaded == len(model.state_dict())
    assert report.fresh == ()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def without(path: Path, part: str) -> Path:
    tensors = {k: v for k, v in load_file(path).items() if part not in k}
    save_file(tensors, path)
    return path


def test_fresh_parts_keep_their_initial_values(saved: Path) -> None:
    model = Toy()
    before = model.pts_bbox_head["aqr"].weight.clone()
    report = load_weights(model, without(saved, ".aqr."), fresh=("aqr",))
    assert report.fresh == ("pts_bbox_head.aqr.weight", "pts_bbox_head.aqr.bias")
    assert torch.equal(model.pts_bbox_head["aqr"].weight, before)


def test_missing_aqr_parts_are_refused_unless_allowed(saved: Path) -> None:
    with pytest.raises(WeightsError, match=r"2 missing: pts_bbox_head.aqr.weight, pts_bbox_head.aqr.bias"):
        load_weights(Toy(), without(saved, ".aqr."))


def test_other_missing_parts_are_refused_even_then(saved: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing: pts_bbox_head.task_heads"):
        load_weights(Toy(), without(saved, "task_heads"), fresh=("aqr",))


def test_another_architecture_is_refused_and_nothing_is_loaded(saved: Path) -> None:
    model = Toy(width=5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"1 of another shape.*\(2, 3\), the model has \(2, 5\)"):
        load_weights(model, saved)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_unexpected_keys_are_refused_and_counted(saved: Path) -> None:
    save_file({**load_file(saved), **{f"extra{i}": torch.zeros(1) for i in range(5)}}, saved)
    with pytest.raises(WeightsError, match="5 unexpected: extra0, extra1, extra2 and 2 more"):
        load_weights(Toy(), saved)


def test_absent_and_damaged_files_are_refused(saved: Path) -> None:
    with pytest.raises(WeightsError, match="checkpoint: there is no "):
        load_weights(Toy(), saved.with_name("none.safetensors"))
    saved.write_bytes(saved.read_bytes()[:-20])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        load_weights(Toy(), saved)


def test_an_unknown_fresh_part_is_refused(saved: Path) -> None:
    with pytest.raises(WeightsError, match="unknown part 'decoder'; expected one of aqr"):
        load_weights(Toy(), saved, fresh=("decoder",))


def test_fresh_parts_are_fresh_as_a_whole_or_not_at_all(saved: Path) -> None:
    with pytest.raises(WeightsError, match=r"1 missing: pts_bbox_head.aqr.bias"):
        load_weights(Toy(), without(saved, "aqr.bias"), fresh=("aqr",))


def test_what_starts_fresh_is_said(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_weights(Toy(), without(saved, ".aqr."), fresh=("aqr",))
    assert "7 tensors loaded; 2 keep their initial values: pts_bbox_head.aqr.weight" in caplog.text


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrap", [lambda state: {"meta": {"epoch": 20}, "state_dict": state}, dict])
def test_a_torch_checkpoint_is_read_with_or_without_wrappers(tmp_path: Path, prefix: str, wrap: Any) -> None:
    model, other = Toy(), Toy()
    torch.save(wrap({prefix + k: v for k, v in model.state_dict().items()}), tmp_path / "epoch_20.pth")
    load_weights(other, tmp_path / "epoch_20.pth")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


class Payload:
    """What a malicious checkpoint holds: unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


def test_a_pickled_payload_does_not_run_and_is_named(tmp_path: Path, caplog: Any) -> None:
    path, trace, other = tmp_path / "epoch_20.pth", tmp_path / "it_ran", Toy()
    model = Toy()
    torch.save({"state_dict": model.state_dict(), "meta": Payload(trace)}, path)
    load_weights(other, path)
    assert not trace.exists()
    assert "epoch_20.pth: left unread beside its tensors: " in caplog.text
    assert "io.open" in caplog.text
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_pickled_payload_in_the_old_format_is_left_unread(tmp_path: Path, caplog: Any) -> None:
    path, trace, model, other = tmp_path / "epoch_20.pth", tmp_path / "it_ran", Toy(), Toy()
    payload = {"state_dict": model.state_dict(), "meta": Payload(trace)}
    torch.save(payload, path, _use_new_zipfile_serialization=False)
    load_weights(other, path)
    assert not trace.exists()
    assert "io.open" in caplog.text
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def test_the_old_format_cannot_claim_more_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "epoch_20.pth"
    torch.save(Toy().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightsError, match=r"should have \d+ elements, and has \d+ bytes"):
        load_weights(Toy(), path)


def test_what_is_no_tensor_among_the_weights_is_refused(tmp_path: Path) -> None:
    path, trace = tmp_path / "epoch_20.pth", tmp_path / "it_ran"
    torch.save({"state_dict": {**Toy().state_dict(), "norm.extra": Payload(trace)}}, path)
    with pytest.raises(WeightsError, match=r"holds a (_io|io).open as 'norm.extra', expected a tensor"):
        load_weights(Toy(), path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8),
        lambda: torch.zeros(1).expand(2**40),
    ],
    ids=["sparse", "quantised", "2^40 elements of one"],
)
@pytest.mark.filterwarnings("ignore")  # quantisation is deprecated
def test_tensors_that_are_no_weights_are_refused(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "epoch_20.pth"
    torch.save({"state_dict": {"norm.weight": make()}}, path)
    with pytest.raises(WeightsError, match=r"norm\.weight"):
        load_weights(Toy(), path)


def test_strides_beyond_the_storage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "epoch_20.pth"
    torch.save({"w": torch.zeros(5, 7)}, path)
    members = {info: zipfile.ZipFile(path).read(info) for info in zipfile.ZipFile(path).infolist()}
    with zipfile.ZipFile(path, "w") as forged:
        for info, data in members.items():
            pickled = info.filename.endswith("data.pkl")
            assert not pickled or b"K\x07K\x01" in data  # its strides
            forged.writestr(info, data.replace(b"K\x07K\x01", b"K\x09K\x01") if pickled else data)
    with pytest.raises(WeightsError, match=r"w has elements outside its 35 in the file"):
        load_weights(Toy(), path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, suffix: str, value: float) -> None:
    model, path = Toy(), tmp_path / f"w.{suffix}"
    with torch.no_grad():
        model.norm.bias[1] = value
    (torch.save if suffix == "pth" else save_file)(model.state_dict(), path)
    with pytest.raises(WeightsError, match=r"w\.\w+: 1 tensors hold numbers that are not finite: norm\.bias"):
        load_weights(Toy(), path)


def test_averaged_weights_of_mmengine_are_offered(tmp_path: Path, caplog: Any) -> None:
    model, average, path = Toy(), Toy(), tmp_path / "epoch_2.pth"
    averaged = {"steps": torch.tensor(4), **{f"module.{k}": v for k, v in average.state_dict().items()}}
    torch.save({"state_dict": model.state_dict(), "ema_state_dict": averaged, "optimizer": {}}, path)
    for name, expected in (("epoch_2.pth", model), ("epoch_2.pth#ema_state_dict", average)):
        other = Toy()
        load_weights(other, path.with_name(name))
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in expected.state_dict().items())
    assert "also holds ema_state_dict; epoch_2.pth#ema_state_dict names it" in caplog.text
    with pytest.raises(WeightsError, match=r"under 'ema' \(it has state_dict, ema_state_dict\)"):
        load_weights(Toy(), path.with_name("epoch_2.pth#ema"))


def test_copies_of_mmcvs_average_are_dropped(tmp_path: Path) -> None:
    model, other = Toy(), Toy()
    state = model.state_dict()
    copies = {f"ema_{key.replace('.', '_')}": torch.zeros_like(value) for key, value in state.items()}
    torch.save({"state_dict": {**state, **copies}}, tmp_path / "epoch_2.pth")
    assert set(load_weights(other, tmp_path / "epoch_2.pth").dropped) == set(copies)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in state.items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.98])
def test_a_torch_checkpoint_that_was_cut_off_is_refused(tmp_path: Path, zipped: bool, share: float) -> None:
    path = tmp_path / "epoch_20.pth"
    torch.save(Toy().state_dict(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match=r"epoch_20.pth (is not a whole checkpoint|holds a pickled)"):
        load_weights(Toy(), path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds no named tensors"):
        load_weights(Toy(), tmp_path / "list.pth")


def shapes(config: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a full-size detector, without its memory."""
    init_default_scope("mmdet3d")
    with torch.device("meta"):
        model = MODELS.build(load_config(f"experiments/configs/{config}.py").model)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def official(parity: Any, detector: str) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in parity.keys(detector).items()}


@pytest.mark.parametrize("detector", SIZES)
def test_the_keys_of_cmt_map_completely(parity: Any, detector: str) -> None:
    given = {key: tuple(value.shape) for key, value in from_official(official(parity, detector)).items()}
    assert given == shapes(f"cmt_{SIZES[detector]}")
    aqr = shapes(f"cmt_aqr_{SIZES[detector]}")
    assert {key for key in aqr if key not in given} == {
        key for key in aqr if key.startswith(("pts_bbox_head.aqr.", "pts_bbox_head.bias_generator."))
    }
    assert all(aqr[key] == shape for key, shape in given.items())


def test_the_keys_of_mome_map_onto_aqr(parity: Any) -> None:
    tensors = official(parity, "mome")
    given, ours = from_official(tensors), shapes(f"cmt_aqr_{SIZES['vov']}")
    own = {"pts_bbox_head.aqr.weight_head.weight", "pts_bbox_head.aqr.weight_head.bias"}
    assert set(ours) - set(given) == own | {"pts_bbox_head.bias_generator.bias_scale"}
    left = {key.removeprefix("pts_bbox_head.transformer.").split(".")[0] for key in set(given) - set(ours)}
    assert left == {"selected_cls", "cam_embed"}
    assert list(to_official(given)) == list(tensors)


class Sparse(nn.Module):
    """A layer that keeps its weight in spconv 2's layout."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 3, 3, 3, 5))


def test_weights_of_sparse_layers_in_mmcvs_layout_are_turned(tmp_path: Path) -> None:
    model, other = Sparse(), Sparse()
    save_file(
        {"weight": model.weight.detach().permute(1, 2, 3, 4, 0).contiguous()}, tmp_path / "w.safetensors"
    )
    assert load_weights(other, tmp_path / "w.safetensors").turned == ("weight",)
    assert torch.equal(model.weight, other.weight)
