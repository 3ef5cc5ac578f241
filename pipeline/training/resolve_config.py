"""What a trial's settings leave to its config, and what they say otherwise.

A config's ``param_scheduler``, ``optim_wrapper`` and ``train_cfg`` hold unless the settings give the same
thing themselves; where they do and differ, it is said.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.config.settings import TrialSettings
from pipeline.detector.build import load_config
from pipeline.detector.openmmlab.lr_schedule import LrSchedule, TrainingLength, read_length, read_schedule
from pipeline.detector.openmmlab.optimizer import accumulative_counts, is_amp
from pipeline.detector.openmmlab.weight_average import read_average
from pipeline.errors import TrialError
from pipeline.storage.paths import resolve_path

WARMUP = 10
"""Steps of linear warm-up where neither settings nor config have a schedule."""


@dataclass(frozen=True)
class ResolvedTraining:
    """Settings and config of a trial put together.

    Attributes:
        settings: with autocast, the number of steps and the warm-up filled in.
        steps: optimiser steps of the training.
        entries: of the config's ``param_scheduler``; none if the settings' warm-up and cosine hold.
        length: of the config's training; None if it does not say.
        epoch: batches of an epoch, by the data.
        differs: what the settings say otherwise than the config, a sentence each.
        batches_per_step: batches that make a step of the optimiser.
        average: of the weights, as ``read_average`` returns it.
    """

    settings: TrialSettings
    steps: int
    entries: tuple[Mapping[str, Any], ...]
    length: TrainingLength | None
    epoch: int
    differs: tuple[str, ...]
    batches_per_step: int = 1
    average: Mapping[str, Any] | None = None

    def schedule(self, optimizer: torch.optim.Optimizer) -> LrSchedule | None:
        """Make the schedule of the config; None: linear warm-up, then cosine, as the settings say."""
        if not self.entries:
            return None
        each = self.batches_per_step
        length = self.length or TrainingLength(steps=self.steps * each)
        whole = _in_steps(length, self.epoch, each)
        epoch = self.epoch * self.steps / whole if self.steps else float(self.epoch)
        return LrSchedule(self.entries, optimizer, length, epoch, self.settings.train.lr_scale, each)


def resolve_training(settings: TrialSettings, frames: int, workers: int) -> ResolvedTraining:
    """Put the settings and the config of a trial together.

    Args:
        settings: the trial; ``with_autocast`` has seen it.
        frames: in an epoch, resampled ones counted as often as they come.
        workers: ranks that share a step.

    Raises:
        TrialError: neither says how long to train.
        pipeline.detector.openmmlab.lr_schedule.ScheduleError: the config cannot be followed.
    """
    config = load_config(resolve_path(settings.config), settings.overrides).to_dict()
    train, length = settings.train, read_length(config)
    entries = read_schedule(config) if train.warmup_steps is None else []
    epoch = -(-frames // (train.batch_size * workers))
    each = accumulative_counts(config["optim_wrapper"])
    if train.steps is not None:
        steps = train.steps
    elif length is None:
        raise TrialError(
            f"{settings.config}: has no train_cfg, and settings.train.steps is None; give one of the two"
        )
    else:
        steps = _in_steps(length, epoch, each)
    differs = tuple(_differences(settings, config, length, epoch))
    settings = replace(settings, train=replace(train, steps=steps, warmup_steps=train.warmup_steps or 0))
    if train.warmup_steps is None and not entries:
        settings = replace(settings, train=replace(settings.train, warmup_steps=WARMUP))
    average = read_average(config)
    return ResolvedTraining(settings, steps, tuple(entries), length, epoch, differs, each, average)


def _in_steps(length: TrainingLength, epoch: int, batches_per_step: int) -> int:
    """Return the steps of the optimiser in a training; ``epoch`` is the number of batches in an epoch."""
    return -(-length.in_steps(epoch) // batches_per_step)


def _differences(
    settings: TrialSettings, config: Mapping[str, Any], length: TrainingLength | None, epoch: int
) -> list[str]:
    """List what the settings say otherwise than the config."""
    train, found = settings.train, []
    if train.warmup_steps is not None and config.get("param_scheduler"):
        found.append(f"settings.train.warmup_steps={train.warmup_steps} and a cosine replace param_scheduler")
    each = accumulative_counts(config["optim_wrapper"])
    whole = None if length is None else _in_steps(length, epoch, each)
    if whole is not None and train.steps not in (None, whole):
        kept = train.warmup_steps is None and config.get("param_scheduler")
        found.append(
            f"settings.train.steps={train.steps} replaces the {whole} steps of the config's train_cfg"
            + ("; its schedule is stretched over them" if kept else "")
        )
    batch = config.get("train_dataloader", {}).get("batch_size")
    if batch not in (None, train.batch_size):
        found.append(f"settings.train.batch_size={train.batch_size}, train_dataloader.batch_size={batch}")
    if is_amp(config["optim_wrapper"]) != train.amp:
        found.append(
            "settings.train.amp=True adds autocast to the config"
            if train.amp
            else "the config's AmpOptimWrapper does nothing on a CPU"
        )
    return found
