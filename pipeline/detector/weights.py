"""Weights of a model: saved as safetensors, loaded strictly from our files and from published checkpoints.

A file holds the parameters and buffers of the model; training state is in ``storage/checkpoints.py``. Our
names are those of CMT. MoME's router, from which AQR was developed, has other names. Nothing in a checkpoint
is ever executed.
"""

import logging
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.detector.backbones.sparse_conv import KERNEL_DIMS, to_spconv2

FRESH_PARTS: Mapping[str, tuple[str, ...]] = {
    "aqr": ("pts_bbox_head.aqr.", "pts_bbox_head.bias_generator."),
    "all but images": ("pts_",),
}
"""Name of a part that a checkpoint of CMT or of an image backbone lacks -> prefixes of its keys."""

OFFICIAL_NAMES: Mapping[str, str] = {
    "pts_bbox_head.transformer.encoder.": "pts_bbox_head.aqr.encoder.",
    "pts_bbox_head.transformer.bev_type_embed": "pts_bbox_head.aqr.bev_type_embed",
    "pts_bbox_head.transformer.rv_type_embed": "pts_bbox_head.aqr.rv_type_embed",
}
"""Prefix of keys in the official detectors -> prefix of our keys. All other keys are the same."""

MOME_ONLY = ("pts_bbox_head.transformer.selected_cls.", "pts_bbox_head.transformer.cam_embed.")
"""Keys of MoME that we do not have: its router selects one of three experts, AQR weighs two sensors."""

WRAPPERS = ("module.",)
"""Prefixes that wrappers such as DDP add to every key."""

DAMAGE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    struct.error,
)
"""Errors of ``torch.load`` for files that are cut off, of another kind, or hold more than tensors."""

_LOG = logging.getLogger(__name__)

NAMED = 3  # number of keys that an error message lists; for a wrong architecture there are hundreds


class WeightsError(ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


@dataclass(frozen=True)
class LoadReport:
    """Result of loading a checkpoint.

    Attributes:
        loaded: number of tensors read from the file.
        fresh: keys of the model that the file lacks; they keep their initial values.
        dropped: keys of the file that the model does not have (``MOME_ONLY``).
        turned: keys of sparse convolutions that were in mmcv's layout.
    """

    loaded: int
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    turned: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the report as one line."""
        notes = {
            "keep their initial values": self.fresh,
            "are only in MoME and were dropped": self.dropped,
            "were permuted from mmcv's layout": self.turned,
        }
        parts = [f"{len(keys)} {what}: {_some(list(keys))}" for what, keys in notes.items() if keys]
        return "; ".join([f"{self.loaded} tensors loaded", *parts])


def save_weights(model: nn.Module, path: Path) -> None:
    """Write parameters and buffers. The file is replaced atomically.

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
    """Load weights into a model. If they do not fit, the model does not change.

    Args:
        model: the detector, or DDP around it.
        path: file of ``save_weights``, or a checkpoint of CMT or MoME (``.pth``).
        fresh: names in ``FRESH_PARTS``. These parts may be missing from the file, each as a whole, and then
            keep their initial values.

    Returns:
        What was loaded and what was not.

    Raises:
        WeightsError: the file is missing, damaged or holds more than tensors, or keys are missing,
            unexpected or of another shape.
    """
    model = getattr(model, "module", model)
    own = model.state_dict()
    given = from_official(read_tensors(path))
    dropped = tuple(key for key in given if key.startswith(MOME_ONLY) and key not in own)
    tensors = {key: value for key, value in given.items() if key not in dropped}
    turned = tuple(key for key, value in tensors.items() if key in own and _is_turned(value, own[key]))
    tensors |= {key: to_spconv2(tensors[key]) for key in turned}
    missing = [key for key in own if key not in tensors]
    absent = [prefix for part in fresh for prefix in _absent_prefixes(part, tensors)]
    initial = tuple(key for key in missing if absent and key.startswith(tuple(absent)))
    _refuse_misfits(path, own, tensors, [key for key in missing if key not in initial])
    state = OrderedDict(tensors)
    # Without the versions in this table, mmdet3d's sparse layers would permute every weight.
    cast(Any, state)._metadata = cast(Any, own)._metadata
    model.load_state_dict(state, strict=False)
    report = LoadReport(len(tensors), initial, dropped, turned)
    if initial or dropped or turned:
        _LOG.warning("%s: %s", path.name, report)
    return report


def from_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a CMT or MoME checkpoint under our names, without the prefixes of wrappers."""
    return {_renamed(_unwrapped(key), OFFICIAL_NAMES): value for key, value in tensors.items()}


def to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors under the names of CMT and MoME; those that only AQR has keep their names."""
    ours = {our: official for official, our in OFFICIAL_NAMES.items()}
    return {_renamed(key, ours): value for key, value in tensors.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of named tensors: safetensors, or PyTorch's format without executing pickled code.

    Args:
        path: ``.safetensors``, or ``.pth`` with the tensors at the top level or under ``state_dict``.

    Raises:
        WeightsError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise WeightsError(f"there is no checkpoint {path}")
    if path.suffix != ".safetensors":
        return _read_torch(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is not a whole safetensors file ({error}); copy or make it again"
        ) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise WeightsError(
                f"{path} is not a whole checkpoint of PyTorch ({type(error).__name__}); copy or make it again"
            ) from error
        raise WeightsError(
            f"{path} holds a pickled {named[1]} besides tensors, which could run any code when loaded; "
            "where you trust the file, load it yourself and save its 'state_dict' alone, best as safetensors"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(
            f"{path} holds no named tensors; expected a state dict, at the top or under 'state_dict'"
        )
    return {key: value.contiguous() for key, value in state.items()}


def _unwrapped(key: str) -> str:
    for prefix in WRAPPERS:
        key = key.removeprefix(prefix)
    return key


def _renamed(key: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _is_turned(given: Tensor, own: Tensor) -> bool:
    """Whether a weight is that of a sparse convolution in the layout of mmcv and spconv 1."""
    if given.ndim != KERNEL_DIMS or given.shape == own.shape:
        return False
    return to_spconv2(given.to("meta")).shape == own.shape


def _absent_prefixes(part: str, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the prefixes of a part if the file has none of its keys; else nothing."""
    prefixes = _prefixes(part)
    return () if any(key.startswith(prefixes) for key in tensors) else prefixes


def _prefixes(part: str) -> tuple[str, ...]:
    if part not in FRESH_PARTS:
        raise WeightsError(f"unknown part {part!r}; expected one of {', '.join(FRESH_PARTS)}")
    return FRESH_PARTS[part]


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
    misfits = [f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in kinds.items() if keys]
    if misfits:
        raise WeightsError(
            f"{path} is of another architecture than the model ({'; '.join(misfits)}); "
            "use the config that it was trained with"
        )


def _some(keys: list[str]) -> str:
    rest = len(keys) - NAMED
    return ", ".join(keys[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
