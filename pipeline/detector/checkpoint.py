"""Weights on disk: safetensors files, loaded strictly, with what differed in the report.

A file holds parameters and buffers of the model under their own names. Training state is elsewhere.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FRESH_PARTS: Mapping[str, tuple[str, ...]] = {"aqr": ("pts_bbox_head.aqr.", "pts_bbox_head.bias_generator.")}
"""Parts that a checkpoint of the published model cannot have: name -> prefixes of their keys."""

NAMED = 3  # keys that an error message spells out; a wrong architecture has hundreds


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


@dataclass(frozen=True)
class LoadReport:
    """What loading did.

    Attributes:
        loaded: number of tensors taken from the file.
        fresh: keys of the model that the file lacks and that keep their initial values.
    """

    loaded: int
    fresh: tuple[str, ...]


def save_weights(model: nn.Module, path: Path) -> None:
    """Write parameters and buffers; the file appears whole or not at all.

    Args:
        model: the detector, or DDP around it.
        path: file to write, usually ``*.safetensors``.
    """
    model = getattr(model, "module", model)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial)
    partial.replace(path)


def load_weights(model: nn.Module, path: Path, fresh: Iterable[str] = ()) -> LoadReport:
    """Read weights into a model; either all fit or the model is left as it was.

    Args:
        model: the detector, or DDP around it.
        path: file of ``save_weights``.
        fresh: names in ``FRESH_PARTS`` that may be missing from the file and then keep their initial values.

    Raises:
        CheckpointError: the file is missing or damaged, or keys are missing, unexpected or of another shape.
    """
    model = getattr(model, "module", model)
    tensors = _read(path)
    own = model.state_dict()
    allowed = tuple(prefix for part in fresh for prefix in _prefixes(part))
    missing = [key for key in own if key not in tensors]
    initial = tuple(key for key in missing if allowed and key.startswith(allowed))
    _refuse_misfits(path, own, tensors, [key for key in missing if key not in initial])
    model.load_state_dict(tensors, strict=False)
    return LoadReport(len(tensors), initial)


def _prefixes(part: str) -> tuple[str, ...]:
    if part not in FRESH_PARTS:
        raise CheckpointError(f"unknown part {part!r}; expected one of {', '.join(FRESH_PARTS)}")
    return FRESH_PARTS[part]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); copy or make it again"
        ) from error


def _refuse_misfits(
    path: Path, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], missing: list[str]
) -> None:
    unexpected = [key for key in tensors if key not in own]
    shaped = [
        f"{key} ({tuple(tensors[key].shape)}, the model has {tuple(own[key].shape)})"
        for key in tensors
        if key in own and tensors[key].shape != own[key].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shaped}
    found = [f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in kinds.items() if keys]
    if found:
        raise CheckpointError(
            f"{path} is of another architecture than the model ({'; '.join(found)}); "
            "use the config that it was trained with"
        )


def _some(keys: list[str]) -> str:
    rest = len(keys) - NAMED
    return ", ".join(keys[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
