"""Write and read checkpoints. A trial that resumes from one computes what it would have without the stop.

A checkpoint is a folder ``step_00000120`` with ``tensors.safetensors`` (weights, buffers, averages,
optimiser state) and ``state.json`` (step, digests of the settings and of the frozen weights). It is written
under another name, flushed, and renamed, so a folder with the right name is complete. A checkpoint holds
nothing else, because learning rate, data order, plan and random states of a step are functions of (settings,
step). They do not depend on earlier steps. Frozen weights are those that the trial began with, so their
digest is enough: of the VoVNet model they are 306 of 350 MB.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.json_files import JsonError, read_json

FORMAT = 2
"""Version of the layout. A reader refuses any other version."""


@dataclass(frozen=True)
class FrozenPart:
    """Weights and buffers of a model that no step changes.

    Attributes:
        names: in the model's state.
        digest: of their values.
    """

    names: frozenset[str] = frozenset()
    digest: str = ""

    @classmethod
    def of(cls, model: nn.Module, modules: Iterable[nn.Module]) -> Self:
        """Return the part of a model that some of its modules are; it reads them once, at about 1 GB/s."""
        own = {id(value) for module in modules for value in module.state_dict(keep_vars=True).values()}
        state = model.state_dict(keep_vars=True)
        tensors = {name: value.detach() for name, value in sorted(state.items()) if id(value) in own}
        hashed = hashlib.blake2b(digest_size=16)
        for name, value in tensors.items():
            hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            hashed.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return cls(frozenset(tensors), hashed.hexdigest())


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds.

    Attributes:
        model: the model.
        optimizer: the model's optimiser.
        average: the averages of weights by name, which are filled in place; empty: weights are not averaged.
        frozen: what it leaves out of the model.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Mapping[str, Tensor] = field(default_factory=dict)
    frozen: FrozenPart = FrozenPart()


class CheckpointError(ValueError):
    """A checkpoint cannot be read or belongs to another trial."""


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the complete checkpoint with the highest step under ``folder``, or None."""
    return max(folder.glob("step_????????"), default=None)


def save_checkpoint(folder: Path, step: int, digest: str, trained: Trained, kept: int = 2) -> Path:
    """Write a checkpoint atomically and delete the old ones.

    Args:
        folder: parent of the checkpoints. It is made if missing.
        step: optimiser steps done.
        digest: digest of the trial's settings.
        trained: what is saved.
        kept: checkpoints that stay, the newest first: the second is for the case that the newest is damaged.

    Returns:
        The new checkpoint's folder.
    """
    final = folder / f"step_{step:08d}"
    partial = folder / f".{final.name}.partial"
    for leftover in (partial, final):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    try:
        save_file(_tensors(trained), partial / "tensors.safetensors")
        header = {"format": FORMAT, "step": step, "settings": digest, "frozen": trained.frozen.digest}
        (partial / "state.json").write_text(json.dumps(header) + "\n", encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            _flush(path)
        partial.rename(final)
    except BaseException:  # remove the partial checkpoint: the disk may be full
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush(folder)
    for old in sorted(folder.glob("step_????????"))[:-kept]:
        shutil.rmtree(old)
    return final


def load_checkpoint(path: Path, digest: str, trained: Trained) -> int:
    """Restore model, optimiser and averages in place and return the number of optimiser steps done.

    Args:
        path: the checkpoint's folder.
        digest: digest of the trial's settings.
        trained: what is restored.

    Raises:
        CheckpointError: the checkpoint cannot be read, or has another format, other settings, other frozen
            weights or another architecture.
    """
    step = _read_header(path, digest, trained.frozen)
    try:
        tensors = load_file(path / "tensors.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot read tensors.safetensors ({error}); delete this checkpoint"
        ) from error
    weights = {key[6:]: value for key, value in tensors.items() if key.startswith("model/")}
    averages = {key[8:]: value for key, value in tensors.items() if key.startswith("average/")}
    state = trained.model.state_dict()
    frozen = {name: state.pop(name) for name in trained.frozen.names}
    _check_shapes(path, weights, state)
    _check_shapes(path, averages, trained.average)
    bad = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{path}: {bad[0]!r} holds numbers that are not finite; it diverged before step {step}; delete it"
        )
    trained.model.load_state_dict(weights | frozen)
    _restore_optimizer(trained.optimizer, _names(trained.model), tensors)
    for key, value in trained.average.items():
        value.copy_(averages[key])
    return step


def _read_header(path: Path, digest: str, frozen: FrozenPart) -> int:
    try:
        header = read_json(path / "state.json", dict)
    except (OSError, JsonError) as error:
        raise CheckpointError(f"{path}: cannot read state.json ({error}); delete this checkpoint") from error
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: state format {header.get('format')}, this code reads {FORMAT}; delete this checkpoint"
        )
    if header.get("settings") != digest:
        raise CheckpointError(
            f"{path}: was written under settings {header.get('settings')}, the trial now has {digest}; "
            "use a new folder or the old settings"
        )
    if header.get("frozen") != frozen.digest:
        raise CheckpointError(
            f"{path}: the frozen weights are others than when it was written; put back the weights that the "
            "trial began with (without any: use the kind of machine that it began on), or start it in a new "
            "folder"
        )
    return int(header["step"])


def _check_shapes(path: Path, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    differing = [key for key in {**weights, **own} if key not in own or key not in weights]
    differing += [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if differing:
        raise CheckpointError(
            f"{path}: belongs to another architecture; {len(differing)} tensors differ, first "
            f"{differing[0]!r}; start the trial in a new folder"
        )


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _tensors(trained: Trained) -> dict[str, Tensor]:
    """Return copies of all tensors on the CPU. They are copies because safetensors refuses shared memory."""
    state = trained.model.state_dict()
    tensors = {f"model/{key}": value for key, value in state.items() if key not in trained.frozen.names}
    tensors |= {f"average/{key}": value for key, value in trained.average.items()}
    names = _names(trained.model)
    for parameter, values in trained.optimizer.state.items():
        tensors |= {f"optim/{names[id(parameter)]}/{key}": torch.as_tensor(v) for key, v in values.items()}
    return {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[int, str], tensors: dict[str, Tensor]
) -> None:
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optim/"):
            name, _, entry = key[6:].rpartition("/")
            by_name.setdefault(name, {})[entry] = value
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for entry, value in by_name.pop(names[id(parameter)], {}).items():
                # AdamW keeps its step count on the CPU unless fused. Moments are on the parameter's device.
                place = "cpu" if entry == "step" and not group.get("fused") else parameter.device
                optimizer.state[parameter][entry] = value.to(place)
    if by_name:
        raise CheckpointError(
            f"the optimiser has no parameter {sorted(by_name)[0]!r} that the checkpoint trained"
        )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
