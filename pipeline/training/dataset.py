"""The training frames of a trial, from its settings and its config's ``train_pipeline``."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.config.settings import TrialSettings
from pipeline.data.augmentation.train_pipeline import read_train_pipeline
from pipeline.data.augmentation.transforms import augment, filter_range, mask_modality, resize_crop
from pipeline.data.formats.open import open_source
from pipeline.data.loading.class_balance import BalancedSource
from pipeline.data.sample import EpochTransform, Sample, Transform
from pipeline.data.source import READ_ALL, JoinedSource, Reading, Source, place_of
from pipeline.detector.backbones.image_branch import NO_IMAGE
from pipeline.detector.build import load_config
from pipeline.errors import TrialError
from pipeline.storage.paths import resolve_path


class TrainingData:
    """Training frames and what is done to them.

    Attributes:
        source: the frames, resampled if the config says so.
        transform: what is done to each.
        val_reading: what is read of a frame to evaluate on.

    If the config lists a ``train_pipeline``, that decides about reading, augmentation and resampling, and
    the settings only say where the data are, and what is masked if the pipeline says nothing about it;
    ``augment=False`` leaves its augmentation out. Without a ``train_pipeline`` the settings decide.

    Args:
        settings: the trial.
        size: (height, width) of the model's images, pixels; ``NO_IMAGE`` for a model without cameras.
        limits: x, y, z minima and maxima of what the model detects, in m.

    Raises:
        TrialError: settings and config contradict one another.
        DataError: a dataset or an entry of the config that cannot be used.
    """

    def __init__(self, settings: TrialSettings, size: tuple[int, int], limits: tuple[float, ...]) -> None:
        config = load_config(resolve_path(settings.config), settings.overrides)
        pipeline = read_train_pipeline(config.to_dict())
        train = settings.train
        mask = (train.camera_dropout_prob, train.lidar_dropout_prob)
        plain = partial(prepare_training, size=size, limits=limits, vary=train.augment, mask=mask)
        self.transform: Transform | EpochTransform = plain
        if pipeline is not None and train.augment:
            if any(mask) and pipeline.masks:
                raise TrialError(
                    f"settings.train.camera_dropout_prob and lidar_dropout_prob are {mask[0]} and {mask[1]}, "
                    "but the config's train_pipeline says itself what is masked (ModalMask3D); set them to 0"
                )
            if (pipeline.size or NO_IMAGE) != size and size != NO_IMAGE:
                raise TrialError(
                    f"{settings.config}: train_pipeline makes images of {pipeline.size or 'native size'}, "
                    f"the model takes {size} (height, width); make ResizeCropFlipImage's final_dim and "
                    "model.image_size equal"
                )
            self.transform = pipeline.with_masks(*mask) if any(mask) else pipeline
        buffer = settings.data.shuffle_buffer

        def fitting(reading: Reading) -> Reading:
            images = size != NO_IMAGE
            return replace(reading, missing_cameras=settings.data.missing_cameras, images=images)

        self.val_reading: Reading = fitting(pipeline.val_reading if pipeline else READ_ALL)
        reading = replace(fitting(pipeline.reading if pipeline else READ_ALL), buffer=buffer)
        joined = JoinedSource([_open(root, settings, reading) for root in settings.data.train])
        balanced = pipeline is not None and pipeline.balanced
        if balanced and buffer:
            raise TrialError(
                f"settings.data.shuffle_buffer is {buffer}, and the config's CBGSDataset draws frames from "
                "all over the split; set it to 0"
            )
        self.source: Source = BalancedSource(joined, settings.seed) if balanced else joined


def _open(root: str, settings: TrialSettings, reading: Reading) -> Source:
    return open_source(place_of(root), settings.data.nuscenes_version, settings.data.train_split, reading)


def database_paths(config: str, overrides: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Return where a config's ``train_pipeline`` looks for its database of cut-out objects.

    Args:
        config: as in ``TrialSettings``.
        overrides: likewise.

    Returns:
        Dotted key of the config (its ``info_path``, its ``data_root``) -> path; empty without GT sampling.
    """
    loader = load_config(config, overrides).to_dict().get("train_dataloader", {})
    return dict(_database_paths(loader, "train_dataloader"))


def _database_paths(node: Any, at: str) -> Iterator[tuple[str, str]]:
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, child in items:
        key = f"{at}.{name}"
        if name == "db_sampler" and isinstance(child, Mapping):
            yield from ((f"{key}.{k}", child[k]) for k in ("info_path", "data_root") if child.get(k))
        yield from _database_paths(child, key)


def prepare_training(
    sample: Sample,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    limits: tuple[float, ...],
    vary: bool,
    mask: tuple[float, float],
) -> Sample:
    """Turn a frame of native size into a training sample, where no config says how.

    Args:
        sample: the frame.
        rng: source of every draw.
        size: (height, width) of the model's images, pixels.
        limits: x, y, z minima and maxima of what the model detects, in m.
        vary: augment.
        mask: probabilities of losing all images, and all points.
    """
    sample = mask_modality(sample, rng, *mask)
    sample = augment(sample, rng, size) if vary else resize_crop(sample, size)
    return filter_range(sample, limits)
