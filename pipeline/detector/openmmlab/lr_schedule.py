"""Learning rate and momentum of every step, from a config's ``param_scheduler``.

mmengine's own schedulers compute them on a copy of the optimiser's groups, so that they are the same as under
its Runner. The values of a step depend only on the step. A resumed training runs the schedulers through the
earlier steps again, which takes microseconds per step.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from pipeline.detector.openmmlab.mmcv_policies import check_policy
from pipeline.detector.openmmlab.mmcv_schedule import MmcvLR, MmcvMomentum

CURVES = ("Constant", "CosineAnnealing", "Exponential", "Linear", "MultiStep", "Poly", "Step")
OF_MMCV = (MmcvLR.__name__, MmcvMomentum.__name__)
KINDS = (*(f"{curve}{what}" for curve in CURVES for what in ("LR", "Momentum")), *OF_MMCV)
"""Schedulers that are functions of the step. Other schedulers of mmengine restart or depend on a metric."""

IN_EPOCHS = ("begin", "end", "T_max", "step_size", "milestones")
"""Keys that count epochs if ``by_epoch`` is true."""

LOOPS = {"EpochBasedTrainLoop": "max_epochs", "IterBasedTrainLoop": "max_iters"}
LOOP_KEYS = {"type", "by_epoch", "max_epochs", "max_iters", "val_interval", "val_begin"}


class ScheduleError(ValueError):
    """``param_scheduler`` or ``train_cfg`` cannot be read."""


@dataclass(frozen=True)
class TrainingLength:
    """Length of a training; one of the two attributes is None.

    Attributes:
        epochs: number of passes over the frames.
        steps: number of batches of all ranks, which are mmengine's iterations.
    """

    epochs: int | None = None
    steps: int | None = None

    def in_steps(self, epoch: int) -> int:
        """Return the number of batches; ``epoch`` is the number of batches in an epoch."""
        return self.steps if self.steps is not None else (self.epochs or 0) * epoch


def read_length(config: Mapping[str, Any]) -> TrainingLength | None:
    """Read ``train_cfg``; None if the config has none.

    Raises:
        ScheduleError: an unknown key, or not exactly one of ``max_epochs`` and ``max_iters``.
    """
    loop = config.get("train_cfg")
    if not loop:
        return None
    unread = sorted(set(loop) - LOOP_KEYS)
    kind = str(
        loop.get("type", "EpochBasedTrainLoop" if loop.get("by_epoch", True) else "IterBasedTrainLoop")
    )
    if unread or kind not in LOOPS:
        what = f"unknown keys {', '.join(unread)}" if unread else f"unknown loop {kind!r}"
        raise ScheduleError(
            f"train_cfg: {what}; expected {' or '.join(LOOPS)} with {', '.join(sorted(LOOP_KEYS - {'type'}))}"
        )
    number = loop.get(LOOPS[kind])
    if not isinstance(number, int) or number < 1:
        raise ScheduleError(f"train_cfg: {kind} needs {LOOPS[kind]}, a number of 1 or more, got {number!r}")
    return TrainingLength(epochs=number) if LOOPS[kind] == "max_epochs" else TrainingLength(steps=number)


def read_schedule(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read ``param_scheduler``: its entries, none if the config has none.

    Raises:
        ScheduleError: an entry is of a kind that is no function of the step.
    """
    given = config.get("param_scheduler") or []
    entries = [dict(entry) for entry in (given if isinstance(given, Sequence) else [given])]
    for place, entry in enumerate(entries):
        if entry.get("type") not in KINDS:
            raise ScheduleError(
                f"param_scheduler[{place}]: expected one of {', '.join(KINDS)}, got {entry.get('type')!r}"
            )
        if entry["type"] in OF_MMCV:
            try:
                check_policy(entry.get("config") or {}, entry["type"] == MmcvMomentum.__name__)
            except ValueError as error:
                raise ScheduleError(f"param_scheduler[{place}], {entry['type']}: {error}") from error
    return entries


class LrSchedule:
    """Sets the learning rates and momenta of an optimiser, step by step.

    Args:
        entries: what ``read_schedule`` returned.
        optimizer: the learning rates of its groups are the base rates. The constructor sets those of step 0.
        length: length of the training: the ``end`` of entries that have none.
        epoch: number of batches in an epoch; fractional if the epochs are stretched over a number of steps.
        lr_scale: factor on all learning rates, which the base rates already contain.
        batches_per_step: batches that make a step of the optimiser. As under mmengine's Runner, a schedule
            counts batches, and a step has the values of its last batch.

    Raises:
        ScheduleError: mmengine refuses an entry.
    """

    def __init__(
        self,
        entries: Sequence[Mapping[str, Any]],
        optimizer: torch.optim.Optimizer,
        length: TrainingLength,
        epoch: float,
        lr_scale: float = 1.0,
        batches_per_step: int = 1,
    ) -> None:
        self._optimizer, self._lr_scale, self._epoch = optimizer, lr_scale, epoch
        self._batches_per_step = batches_per_step
        self._shadow = _Shadow(optimizer, lr_scale)
        made = [_build(place, entry, self._shadow, length, epoch) for place, entry in enumerate(entries)]
        self._schedulers = [scheduler for scheduler in made if scheduler is not None]
        self._shadow.step()
        self._batch = 0
        self.apply(0)

    def apply(self, step: int) -> None:
        """Set the values of a step (from 0) in the optimiser; a step must not be below an earlier one."""
        while self._batch < (step + 1) * self._batches_per_step - 1:
            self._batch += 1
            new_epoch = math.floor(self._batch / self._epoch + 1e-9) > math.floor(
                (self._batch - 1) / self._epoch + 1e-9
            )
            for scheduler in self._schedulers:
                if new_epoch or not scheduler.by_epoch:
                    scheduler.step()
        for group, scheduled in zip(self._optimizer.param_groups, self._shadow.param_groups, strict=True):
            group["lr"] = scheduled["lr"] * self._lr_scale
            for key in ("betas", "momentum"):
                if key in group:
                    group[key] = scheduled[key]


class _Shadow(torch.optim.Optimizer):
    """The groups of an optimiser without its parameters, which mmengine's schedulers change."""

    def __init__(self, optimizer: torch.optim.Optimizer, lr_scale: float) -> None:
        groups = [
            {**group, "params": [nn.Parameter(torch.zeros(0))], "lr": group["lr"] / lr_scale}
            for group in optimizer.param_groups
        ]
        super().__init__(groups, dict(optimizer.defaults))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing. mmengine's schedulers warn if no step was called before them."""


def _in_steps(epochs: Any, epoch: float) -> Any:
    """Convert a number of epochs, or a list of them, to steps."""
    if isinstance(epochs, Sequence):
        return [_in_steps(number, epoch) for number in epochs]
    return epochs if epochs == INF else round(epochs * epoch)


def _build(
    place: int, entry: Mapping[str, Any], shadow: torch.optim.Optimizer, length: TrainingLength, epoch: float
) -> Any:
    """Build one of mmengine's schedulers, as its Runner does; None if its phase rounds to zero steps."""
    made = dict(entry)
    by_epoch = bool(made.get("by_epoch", True))
    end = length.epochs if by_epoch else length.in_steps(round(epoch))
    made.setdefault("end", end or INF)
    if made.pop("convert_to_iter_based", False):
        if not by_epoch:
            raise ScheduleError(f"param_scheduler[{place}]: convert_to_iter_based needs by_epoch=True")
        made["by_epoch"] = False
        made |= {key: _in_steps(made[key], epoch) for key in IN_EPOCHS if made.get(key) is not None}
        if made["type"] in OF_MMCV:
            made["batches_per_epoch"] = epoch
        if made["end"] == made.get("begin", 0) and entry.get("end") != entry.get("begin", 0):
            return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the use in mmengine's Runner
            return PARAM_SCHEDULERS.build(made, default_args={"optimizer": shadow})
    except (TypeError, ValueError, AssertionError) as error:
        raise ScheduleError(f"param_scheduler[{place}], {entry['type']}: {error}") from error
