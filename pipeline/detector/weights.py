"""Weights of a model: saved as safetensors, loaded strictly from our files and from published checkpoints.

A file holds the parameters and buffers of the model; training state is in ``storage/checkpoints.py``. Our
names are those of CMT. MoME's router, from which AQR was developed, has other names. Nothing in a checkpoint
is ever executed.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.detector.backbones.sparse_conv import KERNEL_DIMS, to_spconv2
from pipeline.detector.checkpoints import WeightsError, read_tensors, some
from pipeline.storage.files import atomic_path

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

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """Result of loading a checkpoint.

    Attributes:
        loaded: number of tensors read from the file.
        fresh: keys of the model that the file lacks; they keep their initial values.
        dropped: keys of the file that the model does not have (``MOME_ONLY``, copies of mmcv 1's EMAHook).
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
            "are MoME's or EMAHook's own and were dropped": self.dropped,
            "were permuted from mmcv's layout": self.turned,
        }
        parts = [f"{len(keys)} {what}: {some(list(keys))}" for what, keys in notes.items() if keys]
        return "; ".join([f"{self.loaded} tensors loaded", *parts])


def save_weights(model: nn.Module, path: Path) -> None:
    """Write parameters and buffers. The file is replaced atomically.

    Args:
        model: the detector, or a wrapper that has it as ``module``.
        path: file to write, usually ``*.safetensors``.
    """
    model = getattr(model, "module", model)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        save_file(tensors, partial)


def load_weights(model: nn.Module, path: Path, fresh: Iterable[str] = ()) -> LoadReport:
    """Load weights into a model. If they do not fit, the model does not change.

    Args:
        model: the detector, or a wrapper that has it as ``module``.
        path: file of ``save_weights``, or a checkpoint of CMT or MoME (``.pth``).
        fresh: names in ``FRESH_PARTS``. These parts may be missing from the file, each as a whole, and then
            keep their initial values.

    Returns:
        What was loaded and what was not.

    Raises:
        WeightsError: the file is missing or damaged, keys are missing, unexpected or of another shape, or a
            weight is not finite.
    """
    model = getattr(model, "module", model)
    own = model.state_dict()
    given = from_official(read_tensors(path))
    _refuse_infinite(path, given)
    dropped = tuple(
        key for key in given if key not in own and (key.startswith(MOME_ONLY) or _is_average(key, own))
    )
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


def _refuse_infinite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not finite: what they compute is NaN."""
    bad = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise WeightsError(
            f"{path}: {len(bad)} tensors hold numbers that are not finite: {some(bad)}; its training "
            "diverged, or the file is damaged"
        )


def _is_average(key: str, own: Mapping[str, Tensor]) -> bool:
    """Whether a buffer is the copy that mmcv 1's EMAHook keeps of a weight; the weight itself is averaged."""
    return key.startswith("ema_") and key[4:] in {name.replace(".", "_") for name in own}


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
    misfits = [f"{len(keys)} {kind}: {some(keys)}" for kind, keys in kinds.items() if keys]
    if misfits:
        raise WeightsError(
            f"{path} is of another architecture than the model ({'; '.join(misfits)}); "
            "use the config that it was trained with"
        )
