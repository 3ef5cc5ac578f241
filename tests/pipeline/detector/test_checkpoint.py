"""Weights come back bit for bit, or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.detector.checkpoint import CheckpointError, load_weights, save_weights


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
    with pytest.raises(CheckpointError, match=r"2 missing: pts_bbox_head.aqr.weight, pts_bbox_head.aqr.bias"):
        load_weights(Toy(), without(saved, ".aqr."))


def test_other_missing_parts_are_refused_even_then(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing: pts_bbox_head.task_heads"):
        load_weights(Toy(), without(saved, "task_heads"), fresh=("aqr",))


def test_another_architecture_is_refused_and_nothing_is_loaded(saved: Path) -> None:
    model = Toy(width=5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"1 of another shape.*\(2, 3\), the model has \(2, 5\)"):
        load_weights(model, saved)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_unexpected_keys_are_refused_and_counted(saved: Path) -> None:
    save_file({**load_file(saved), **{f"extra{i}": torch.zeros(1) for i in range(5)}}, saved)
    with pytest.raises(CheckpointError, match="5 unexpected: extra0, extra1, extra2 and 2 more"):
        load_weights(Toy(), saved)


def test_absent_and_damaged_files_are_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_weights(Toy(), saved.with_name("none.safetensors"))
    saved.write_bytes(saved.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_weights(Toy(), saved)


def test_an_unknown_fresh_part_is_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown part 'decoder'; expected one of aqr"):
        load_weights(Toy(), saved, fresh=("decoder",))
