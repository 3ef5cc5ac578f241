"""State checkpoints: whole or absent, exact, and refused where they do not belong."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.storage.checkpoint import (
    CheckpointError,
    FrozenPart,
    Trained,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)


def trained(steps: int, width: int = 3) -> Trained:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1), nn.Linear(9, 9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(steps):
        go(model, optimizer, step)
    return Trained(model, optimizer)


def go(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad(set_to_none=True)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(step))
    model[2](model[1](model[0](x))).square().sum().backward()  # the last layer never gets a gradient
    optimizer.step()


def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    first, second = trained(3), trained(1)
    path = save_checkpoint(tmp_path, 3, "d", first)
    go(first.model, first.optimizer, 3)
    assert load_checkpoint(path, "d", second) == 3
    go(second.model, second.optimizer, 3)
    states = (one.model.state_dict() for one in (first, second))
    for (name, one), two in zip(next(states).items(), next(states).values(), strict=True):
        assert torch.equal(one, two), name


def freeze(parts: Trained) -> Trained:
    """The last layer, which never trains, is the frozen part; the batch norm, which does, is not."""
    return replace(parts, frozen=FrozenPart.of(parts.model, [parts.model[3]]))


def test_frozen_weights_are_left_out_and_stay(tmp_path: Path) -> None:
    first, second = freeze(trained(3)), freeze(trained(1))
    path = save_checkpoint(tmp_path, 3, "d", first)
    names = {key for key in load_file(path / "tensors.safetensors") if key.startswith("model/")}
    assert names == {f"model/{name}" for name in first.model.state_dict()} - {
        "model/3.weight",
        "model/3.bias",
    }
    assert load_checkpoint(path, "d", second) == 3
    for (name, one), two in zip(
        first.model.state_dict().items(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("change", [lambda weight: weight[0, 0].add_(1e-6), lambda weight: weight.t_()])
def test_other_frozen_weights_are_refused(tmp_path: Path, change: Callable[[torch.Tensor], object]) -> None:
    path = save_checkpoint(tmp_path, 3, "d", freeze(trained(3)))
    other = trained(1)
    with torch.no_grad():
        change(other.model[3].weight)
    before = {name: value.clone() for name, value in other.model.state_dict().items()}
    with pytest.raises(CheckpointError, match="frozen weights are others than when it was written; put back"):
        load_checkpoint(path, "d", freeze(other))
    assert all(torch.equal(before[name], value) for name, value in other.model.state_dict().items())


def test_a_checkpoint_with_all_weights_is_refused_where_some_are_frozen(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, "d", trained(3))
    with pytest.raises(CheckpointError, match="frozen weights are others"):
        load_checkpoint(path, "d", freeze(trained(1)))


def test_moments_that_the_checkpoint_lacks_are_forgotten(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 0, "d", trained(0))
    restored = trained(2)
    load_checkpoint(path, "d", restored)
    assert not restored.optimizer.state


def test_only_the_newest_are_kept_and_found(tmp_path: Path) -> None:
    parts = trained(1)
    assert newest_checkpoint(tmp_path) is None
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, step, "d", parts)
    (tmp_path / ".step_00000011.partial").mkdir()  # what a crash leaves behind
    assert newest_checkpoint(tmp_path) == tmp_path / "step_00000010"
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_00000002", "step_00000010"]


def test_as_many_are_kept_as_the_settings_say(tmp_path: Path) -> None:
    for step in (1, 2, 10, 11):
        save_checkpoint(tmp_path, step, "d", trained(1), kept=3)
    assert [int(path.name[5:]) for path in sorted(tmp_path.glob("step_*"))] == [2, 10, 11]


def test_a_crash_before_the_rename_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = trained(1)
    save_checkpoint(tmp_path, 1, "d", parts)

    def crash(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 2, "d", parts)
    assert newest_checkpoint(tmp_path) == tmp_path / "step_00000001"
    assert save_checkpoint(tmp_path, 2, "d", parts) == newest_checkpoint(tmp_path)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, "old", trained(1))
    with pytest.raises(CheckpointError, match=r"settings old, the trial now has new; use a new folder"):
        load_checkpoint(path, "new", trained(0))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, "d", trained(1))
    deeper = nn.Sequential(*trained(0).model, nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match="another architecture; 2 tensors differ"):
        load_checkpoint(path, "d", Trained(deeper, torch.optim.AdamW(deeper.parameters())))


def test_averages_are_filled_in_place_and_missing_ones_are_refused(tmp_path: Path) -> None:
    of_weights, steps = torch.rand(3), torch.tensor(5)
    first = replace(trained(1), average={"0.weight": of_weights, "steps": steps})
    path = save_checkpoint(tmp_path, 1, "d", first)
    second = replace(trained(0), average={"0.weight": torch.zeros(3), "steps": torch.tensor(0)})
    filled = dict(second.average)
    load_checkpoint(path, "d", second)
    assert torch.equal(filled["0.weight"], of_weights)
    assert int(filled["steps"]) == 5
    with pytest.raises(CheckpointError, match="2 tensors differ, first 'steps'"):
        load_checkpoint(path, "d", trained(0))


def test_another_width_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, "d", trained(1))
    with pytest.raises(CheckpointError, match="another architecture"):
        load_checkpoint(path, "d", trained(0, width=4))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, "d", trained(1))
    tensors = path / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cannot read tensors\.safetensors.*delete this checkpoint"):
        load_checkpoint(path, "d", trained(0))
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read state\.json"):
        load_checkpoint(path, "d", trained(0))
    (path / "state.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(CheckpointError, match="state format 0, this code reads 2; delete"):
        load_checkpoint(path, "d", trained(0))


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    broken = trained(1)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    path = save_checkpoint(tmp_path, 1, "d", broken)
    with pytest.raises(CheckpointError, match=r"'0\.weight' holds numbers that are not finite"):
        load_checkpoint(path, "d", trained(0))
