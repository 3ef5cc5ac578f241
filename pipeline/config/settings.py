"""Frozen, complete, and named by their digest.

The same settings give the same digest, so a trial that is done can be recognised and an
unfinished one resumed. ``config`` names an mmengine config; ``overrides`` are what
``--cfg-options`` takes there (dotted key, JSON value).
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.config.plan import Plan
from pipeline.json_files import check_fields

CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""The ten detection classes in the order of CMT; a label is an index into it."""


@dataclass(frozen=True)
class DataSettings:
    """Where the frames are.

    Attributes:
        train: dataset roots to train on (nuScenes layout, or a folder of shards).
        val: dataset root to evaluate on; its nuScenes tables must be there too.
        nuscenes_version: nuScenes version, names the tables folder.
        train_split: split of the official devkit.
        val_split: split of the official devkit.
        num_loader_workers: loader processes per training worker; 0 loads in the training process.
        shuffle_buffer: frames that are shuffled among one another, row groups of shards among themselves;
            0 shuffles all frames of the split, wherever they lie.
        max_broken_frames: distinct training frames, per worker, that may be skipped because they
            cannot be read; 0 stops at the first. Evaluation always stops: other frames would be another
            metric.
        missing_cameras: ``refuse`` a frame without one of its six images, or show it ``black``, as the
            condition of a failed camera does.
    """

    train: tuple[str, ...]
    val: str
    nuscenes_version: str = "v1.0-mini"
    train_split: str = "mini_train"
    val_split: str = "mini_val"
    num_loader_workers: int = 0
    shuffle_buffer: int = 0
    max_broken_frames: int = 0
    missing_cameras: str = "refuse"


@dataclass(frozen=True)
class TrainSettings:
    """How long and how fast. Optimiser, clipping and learning-rate multipliers are in the config.

    Attributes:
        steps: optimiser steps. 0 evaluates the initial weights; None takes as many as the config's
            ``train_cfg`` says.
        batch_size: samples per worker and batch. A step has one batch, or as many as
            ``optim_wrapper.accumulative_counts`` says.
        warmup_steps: linear warm-up of the learning rate, then cosine to 1e-3 of it. None: the config's
            ``param_scheduler``; a warm-up of 10 if it has none.
        lr_scale: factor on every learning rate of the config.
        augment: geometric and photometric augmentation on or off.
        camera_dropout_prob: share of the samples whose images are all black (CMT's masked-modal
            training: 0.25).
        lidar_dropout_prob: share of the samples without points (CMT: 0.25).
        checkpoint_every: steps between checkpoints.
        checkpoints_kept: newest checkpoints of a trial that stay on disk.
        log_every: steps between rows of losses and norms.
        amp: bfloat16 autocast (GPU only), also where the config has no ``AmpOptimWrapper``.
        cuda_graphs: train the head through CUDA graphs (GPU only); False launches kernel by kernel, in less
            memory.
    """

    steps: int | None
    batch_size: int = 4
    warmup_steps: int | None = None
    lr_scale: float = 1.0
    augment: bool = True
    camera_dropout_prob: float = 0.0
    lidar_dropout_prob: float = 0.0
    checkpoint_every: int = 1000
    log_every: int = 10
    amp: bool = False
    cuda_graphs: bool = True
    checkpoints_kept: int = 2


@dataclass(frozen=True)
class _Plans:
    """The plans of settings as JSON holds them."""

    plan: str
    plan_mixture: tuple[str, ...]


@dataclass(frozen=True)
class TrialSettings:
    """Everything that decides what a trial does.

    Attributes:
        study: name of the study.
        config: mmengine config file, relative to the project root, or an absolute path.
        plan: unresolved or resolved plan.
        plan_mixture: further plans; if there are any, each step trains one of all plans, drawn by seed.
        data: where the frames are.
        train: how long and how fast it trains.
        seed: seeds weights, data order, augmentation and denoising.
        init_checkpoint: checkpoint (safetensors) to start from; empty starts from the seed.
        conditions: sensor conditions to evaluate.
        num_workers: Ray Train workers, whose gradients are averaged.
        torch_threads: torch threads per worker on a CPU.
        device: ``cpu`` or ``cuda``.
        overrides: dotted config key -> JSON text of its value.
    """

    study: str
    config: str
    plan: Plan
    data: DataSettings
    train: TrainSettings
    seed: int = 0
    plan_mixture: tuple[Plan, ...] = ()
    init_checkpoint: str = ""
    conditions: tuple[str, ...] = ("clean",)
    num_workers: int = 1
    torch_threads: int = 2
    device: str = "cpu"
    overrides: tuple[tuple[str, str], ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; ``from_dict`` reads them back."""
        plain = asdict(self)
        plain["plan"] = str(self.plan)
        plain["plan_mixture"] = [str(plan) for plan in self.plan_mixture]
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "TrialSettings":
        """Rebuild settings from ``to_dict``.

        Raises:
            JsonError: a key is unknown or missing, or a value has another type.
            PlanError: a plan cannot be read.
        """
        plans = {"plan": plain.get("plan"), "plan_mixture": plain.get("plan_mixture", [])}
        check_fields(_Plans, plans, "settings")
        check_fields(cls, plain, "settings", but=tuple(plans))
        made = dict(plain)
        made["plan"] = Plan.parse(plans["plan"])
        made["plan_mixture"] = tuple(Plan.parse(text) for text in plans["plan_mixture"])
        made["data"] = DataSettings(**{**plain["data"], "train": tuple(plain["data"]["train"])})
        made["train"] = TrainSettings(**plain["train"])
        made["conditions"] = tuple(plain.get("conditions", cls.conditions))
        made["overrides"] = tuple((key, value) for key, value in plain.get("overrides", ()))
        return cls(**made)

    @property
    def digest(self) -> str:
        """Twelve hex digits that name these settings.

        ``data.missing_cameras`` counts unless it is ``refuse``, which was all there was: trials that ran
        before it was a setting keep their names. ``train.checkpoints_kept`` changes no result, and does not
        count.
        """
        plain = self.to_dict()
        if plain["data"]["missing_cameras"] == "refuse":
            del plain["data"]["missing_cameras"]
        del plain["train"]["checkpoints_kept"]
        text = json.dumps(plain, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
