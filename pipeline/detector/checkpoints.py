"""Reads the named tensors of a checkpoint: safetensors, or a file of PyTorch. Nothing in it is executed."""

import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.detector.torch_files import TorchFile, TorchFileError
from pipeline.storage.paths import STATE, not_a_file, split_name

_LOG = logging.getLogger(__name__)

NAMED = 3  # number of keys that an error message lists; for a wrong architecture there are hundreds


class WeightsError(ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of named tensors: safetensors, or PyTorch's format without executing pickled code.

    Args:
        path: ``.safetensors``, or ``.pth`` with the tensors at the top level or under ``state_dict``; or
            ``.pth#KEY`` for those under another key, such as ``ema_state_dict`` of mmengine's EMAHook (which
            are the weights that are not averaged: the hook exchanges them when it saves).

    Raises:
        WeightsError: the file is missing or damaged, or what should be a tensor is something else.
    """
    path, key = split_name(path)
    if problem := not_a_file(path):
        raise WeightsError(f"checkpoint: {problem}")
    if path.suffix != ".safetensors":
        return _read_torch(path, key)
    if key != STATE:
        raise WeightsError(
            f"{path} is a safetensors file and holds one set of weights; leave out #{key[:60]}"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is not a whole safetensors file ({error}); copy or make it again"
        ) from error


def _read_torch(path: Path, key: str) -> dict[str, Tensor]:
    try:
        file = TorchFile(path)
        content = file.content
        nested = isinstance(content, dict) and key in content
        state: Any = content[key] if nested else content if key == STATE else None
        if not file.named_tensors(state):
            raise _no_tensors(path, key, file, state)
        tensors = file.tensors(state)
    except TorchFileError as error:
        raise WeightsError(
            f"{path} is not a whole checkpoint of PyTorch ({error}); copy or make it again"
        ) from error
    if file.skipped:
        _LOG.warning("%s: left unread beside its tensors: %s", path.name, some(list(file.skipped)))
    for other in _others(file, key) if nested else ():
        _LOG.warning("%s: also holds %s; %s#%s names it", path.name, other, path.name, other)
    # mmengine's averaged model counts its updates.
    return {name: tensor for name, tensor in tensors.items() if key == STATE or name != "steps"}


def _others(file: TorchFile, key: str) -> list[str]:
    """Return the other state dicts of a checkpoint, such as those of mmengine's EMAHook."""
    return [
        str(name)
        for name, value in file.content.items()
        if name != key and value and file.named_tensors(value)
    ]


def _no_tensors(path: Path, key: str, file: TorchFile, state: Any) -> WeightsError:
    if isinstance(state, dict) and state:
        foreign = [name for name, value in state.items() if not file.named_tensors({name: value})]
        held = getattr(state[foreign[0]], "name", type(state[foreign[0]]).__name__)
        return WeightsError(
            f"{path} holds a {held} as {str(foreign[0])[:100]!r}, expected a tensor; save its tensors alone"
        )
    has = _others(file, key) if isinstance(file.content, dict) else []
    return WeightsError(
        f"{path} holds no named tensors; expected a state dict, at the top or under {key!r}"
        + (f" (it has {', '.join(has)})" if has else "")
    )


def some(keys: list[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    rest = len(keys) - NAMED
    return ", ".join(keys[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
