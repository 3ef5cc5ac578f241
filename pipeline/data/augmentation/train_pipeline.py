"""Reads a config's ``train_pipeline`` as steps on samples.

The config has the syntax of CMT and mmdet3d, under ``train_dataloader.dataset``. Sources and ``collate`` do
the loading and packing; the entries for these are checked against what they do. An entry that cannot be
followed is refused here, before any training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.config.sections import hooks_of
from pipeline.data.augmentation.gt_sampling import UnifiedObjectSample
from pipeline.data.augmentation.pipeline_steps import (
    CustomRandomFlip3D,
    GlobalRotScaleTransAll,
    LoadAnnotations3D,
    ModalMask3D,
    ObjectNameFilter,
    ObjectRangeFilter,
    PointShuffle,
    PointsRangeFilter,
    ResizeCropFlipImage,
    Step,
)
from pipeline.data.augmentation.transforms import mask_modality
from pipeline.data.sample import DataError, Sample, Transform
from pipeline.data.source import READ_ALL, Reading

STEPS: Mapping[str, Any] = {
    step.__name__: step
    for step in (
        LoadAnnotations3D,
        UnifiedObjectSample,
        ModalMask3D,
        GlobalRotScaleTransAll,
        CustomRandomFlip3D,
        PointsRangeFilter,
        ObjectRangeFilter,
        ObjectNameFilter,
        PointShuffle,
        ResizeCropFlipImage,
    )
}
"""Entries that change a sample."""

LOADERS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "LoadPointsFromFile": {
        "coord_type": ("LIDAR",),
        "load_dim": (5,),
        "use_dim": (5, [0, 1, 2, 3, 4]),
        "backend_args": (None,),
    },
    "LoadPointsFromMultiSweeps": {
        "load_dim": (5,),
        "use_dim": (5, [0, 1, 2, 3, 4]),
        "pad_empty_sweeps": (False,),  # CMT
        "test_mode": (False, True),
        "backend_args": (None,),
    },
    "LoadMultiViewImageFromFiles": {
        "to_float32": (False, True),  # the model's preprocessor converts to float in both cases
        "color_type": ("unchanged", "color"),
        "num_views": (5, 6),  # mmdet3d's default is 5 and has no effect
        "set_default_scale": (False, True),
        "backend_args": (None,),
    },
}
"""Entries that load -> key -> the values that our sources support."""

REPLACEMENTS: Mapping[str, str] = {
    "GlobalRotScaleTrans": "it does not update lidar2img; use GlobalRotScaleTransAll",
    "RandomFlip3D": "it damages lists of images; use CustomRandomFlip3D",
    "ObjectSample": "use UnifiedObjectSample, with sample_2d=False to keep the images as they are",
    "NormalizeMultiviewImage": "mean and std are in model.data_preprocessor; remove it",
    "PadMultiViewImage": "pad_size_divisor is in model.data_preprocessor; remove it",
    "DefaultFormatBundle3D": "use Pack3DDetInputs",
    "Collect3D": "use Pack3DDetInputs",
}
"""Entries of other versions of these libraries -> what to use instead."""

CHANGING = ("UnifiedObjectSample", "GlobalRotScaleTransAll", "CustomRandomFlip3D", "ModalMask3D")
"""Steps that change what a frame shows; an evaluation has none of them."""

NOT_CHANGED = "frames are evaluated as they are, and under --conditions such as no_lidar and no_cameras"

DISABLE_HOOK = "DisableObjectSampleHook"
"""Hook of mmdet3d. From the epoch ``disable_after_epoch`` on, no objects are pasted."""


@dataclass(frozen=True)
class TrainPipeline:
    """Reading and augmentation of a config.

    Attributes:
        steps: the steps in order.
        reading: what is read of a training frame.
        val_reading: what is read of a validation frame.
        balanced: whether to resample the frames (CBGSDataset).
        paste_epochs: number of epochs in which objects are pasted; None: all.
    """

    steps: tuple[Step, ...]
    reading: Reading = READ_ALL
    val_reading: Reading = READ_ALL
    balanced: bool = False
    paste_epochs: int | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the resulting images in pixels; None: that of the dataset."""
        sizes = [step.size for step in self.steps if isinstance(step, ResizeCropFlipImage)]
        return sizes[-1] if sizes else None

    @property
    def masks(self) -> bool:
        """Whether a step masks one modality."""
        return any(isinstance(step, ModalMask3D) for step in self.steps)

    def with_masks(self, cameras: float, lidar: float) -> "TrainPipeline":
        """Return the pipeline with one more step, which masks a modality as ``mask_modality`` does.

        It is the last one, so that no object is pasted into what is masked.

        Args:
            cameras: share of the samples that lose their images.
            lidar: share of the samples that lose their points.
        """
        return replace(self, steps=(*self.steps, partial(mask_modality, cameras=cameras, lidar=lidar)))

    def at(self, epoch: int) -> Transform:
        """Return the transform of an epoch (from 0)."""
        disabled = self.paste_epochs is not None and epoch >= self.paste_epochs
        steps = [step for step in self.steps if not (disabled and isinstance(step, UnifiedObjectSample))]

        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            for step in steps:
                sample = step(sample, rng)
            return sample

        return transform


def read_train_pipeline(config: Mapping[str, Any]) -> TrainPipeline | None:
    """Read ``train_dataloader``, ``val_dataloader`` and ``custom_hooks`` of a config.

    Args:
        config: the config as plain dicts and lists.

    Returns:
        The pipeline; None if there is no ``train_dataloader``. Then the trial's settings decide.

    Raises:
        DataError: names an entry, a key or a value that we do not support.
    """
    if "train_dataloader" not in config:
        return None
    dataset, wrappers = _innermost(config["train_dataloader"].get("dataset", {}))
    unknown = [name for name in wrappers if name != "CBGSDataset"]
    if unknown:
        raise DataError(
            f"train_dataloader.dataset: unknown wrapper {unknown[0]}; expected CBGSDataset or none"
        )
    steps, reading = read_steps(dataset.get("pipeline", ()), "train_dataloader")
    val = _innermost(config.get("val_dataloader", {}).get("dataset", {}))[0]
    val_reading = _val_reading(val["pipeline"]) if val.get("pipeline") else READ_ALL
    hooks = [hook for _, name, hook in hooks_of(config) if name == DISABLE_HOOK]
    epochs = hooks[-1].get("disable_after_epoch", 15) if hooks else None  # mmdet3d's default
    return TrainPipeline(steps, reading, val_reading, bool(wrappers), epochs)


def _innermost(dataset: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """Return the dataset inside all wrappers, and the wrappers' types."""
    wrappers = []
    while "dataset" in dataset:
        wrappers.append(str(dataset.get("type")))
        dataset = dataset["dataset"]
    return dataset, wrappers


def _val_reading(entries: Sequence[Mapping[str, Any]]) -> Reading:
    """Return what is read of a validation frame; refuse steps that evaluation would not do."""
    for place, entry in enumerate(entries):
        if entry.get("type") in CHANGING:
            at = f"val_dataloader.dataset.pipeline[{place}], {entry['type']}"
            raise DataError(f"{at}: remove it; {NOT_CHANGED}")
    return read_steps(entries, "val_dataloader")[1]


def read_steps(entries: Sequence[Mapping[str, Any]], where: str) -> tuple[tuple[Step, ...], Reading]:
    """Read the entries of one pipeline.

    Args:
        entries: as in a config.
        where: names the pipeline in messages.

    Raises:
        DataError: see ``read_train_pipeline``.
    """
    if not entries:
        raise DataError(f"{where}.dataset: has no pipeline; expected a list such as CMT's train_pipeline")
    steps: list[Step] = []
    reading = Reading(sweeps=0)  # only the key frame, unless an entry loads sweeps
    for place, entry in enumerate(entries):
        keys = dict(entry)
        kind = str(keys.pop("type", None))
        at = f"{where}.dataset.pipeline[{place}], {kind}"
        if kind in STEPS:
            steps.append(_build(kind, keys, at))
        elif kind in LOADERS:
            if kind == "LoadPointsFromMultiSweeps":
                sweeps, close = (
                    keys.pop("sweeps_num", 10),
                    keys.pop("remove_close", False),
                )  # mmdet3d's defaults
                reading = Reading(sweeps=int(sweeps), remove_close=bool(close))
            _check_loader(kind, keys, at)
        elif kind != "Pack3DDetInputs":
            known = ", ".join([*LOADERS, *STEPS, "Pack3DDetInputs"])
            raise DataError(f"{at}: {REPLACEMENTS.get(kind, f'unknown entry; expected one of {known}')}")
    return tuple(steps), reading


def _build(kind: str, keys: Mapping[str, Any], at: str) -> Step:
    try:
        step: Step = STEPS[kind](**keys)
    except TypeError as error:
        raise DataError(f"{at}: {str(error).partition('() ')[2] or error}") from error
    return step


def _check_loader(kind: str, keys: Mapping[str, Any], at: str) -> None:
    for key, value in keys.items():
        supported = LOADERS[kind].get(key)
        value = list(value) if isinstance(value, tuple) else value
        if supported is None:
            raise DataError(f"{at}: unknown key {key!r}; remove it")
        if value not in supported:
            raise DataError(f"{at}: {key}={value!r}; our sources support {' or '.join(map(repr, supported))}")
