"""What becomes of each section of a config: it is read, it has no effect here, or it is refused.

mmengine's Runner reads all of ``SECTIONS``. Our own loop does some otherwise and some not at all. What
would change the training and is not followed is refused: a training must not differ in silence.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.provenance import Key

READ, HONOURED, NO_EFFECT = "read", "honoured", "no effect"


@dataclass(frozen=True)
class Section:
    """What becomes of a section.

    Attributes:
        fate: ``READ``: it decides; ``HONOURED``: it decides where the settings of a trial say nothing;
            ``NO_EFFECT``: something else decides.
        why: a clause that says what decides.
    """

    fate: str
    why: str


SECTIONS: Mapping[str, Section] = {
    "auto_scale_lr": Section(NO_EFFECT, "learning rates are those of optim_wrapper; enable=True is refused"),
    "cfg": Section(NO_EFFECT, "it is an argument of the Runner"),
    "custom_hooks": Section(READ, "see HOOKS; a hook that is not there is refused"),
    "custom_imports": Section(READ, "the modules are imported"),
    "data_preprocessor": Section(READ, "only that of the model; one beside it is refused"),
    "default_hooks": Section(NO_EFFECT, "the settings say when to log and to save; see HOOKS"),
    "default_scope": Section(READ, "it is always mmdet3d"),
    "env_cfg": Section(NO_EFFECT, "processes, threads and cuDNN are set by the settings"),
    "experiment_name": Section(NO_EFFECT, "the study names its trials"),
    "launcher": Section(NO_EFFECT, "Ray starts the processes"),
    "load_from": Section(HONOURED, "the initial weights, where the settings name none"),
    "log_level": Section(NO_EFFECT, "the command sets it"),
    "log_processor": Section(NO_EFFECT, "rows hold every number"),
    "model": Section(READ, "the detector"),
    "optim_wrapper": Section(READ, "optimiser, multipliers, clipping, accumulation, autocast"),
    "param_scheduler": Section(HONOURED, "where the settings give no warm-up"),
    "randomness": Section(NO_EFFECT, "the seed of the settings decides, and a training is repeatable"),
    "resume": Section(NO_EFFECT, "a trial goes on from its own newest checkpoint; True is refused"),
    "test_cfg": Section(NO_EFFECT, "evaluation is that of the settings"),
    "test_dataloader": Section(NO_EFFECT, "evaluation is on the validation split of the settings"),
    "test_evaluator": Section(NO_EFFECT, "the metric is always the official one of nuScenes"),
    "train_cfg": Section(HONOURED, "its length, where the settings give no number of steps"),
    "train_dataloader": Section(HONOURED, "pipeline and CBGS; the settings say where data and batches are"),
    "val_cfg": Section(NO_EFFECT, "evaluation is that of the settings"),
    "val_dataloader": Section(HONOURED, "what its pipeline reads of a frame; the settings say of which"),
    "val_evaluator": Section(NO_EFFECT, "the metric is always the official one of nuScenes"),
    "visualizer": Section(NO_EFFECT, "MLflow shows the rows"),
    "work_dir": Section(NO_EFFECT, "the settings name the folder"),
}
"""Sections that mmengine's Runner reads: its parameters, listed because its import takes half a second."""

HOOKS: Mapping[str, Section] = {
    "CheckInvalidLossHook": Section(NO_EFFECT, "every step stops at a loss that is not finite"),
    "CheckpointHook": Section(NO_EFFECT, "the settings say when checkpoints are made"),
    "Det3DVisualizationHook": Section(NO_EFFECT, "a trial draws one scene at its end"),
    "DetVisualizationHook": Section(NO_EFFECT, "a trial draws one scene at its end"),
    "DisableObjectSampleHook": Section(READ, "no objects are pasted from that epoch on"),
    "DistSamplerSeedHook": Section(NO_EFFECT, "every epoch is shuffled anew"),
    "EMAHook": Section(READ, "the average of the weights is evaluated and kept; see EMA_KEYS"),
    "EmptyCacheHook": Section(NO_EFFECT, "the allocator keeps its memory"),
    "IterTimerHook": Section(NO_EFFECT, "every step is timed"),
    "LoggerHook": Section(NO_EFFECT, "the settings say when there are rows"),
    "MemoryProfilerHook": Section(NO_EFFECT, "peak memory is a row"),
    "NumClassCheckHook": Section(NO_EFFECT, "lint compares the classes"),
    "ParamSchedulerHook": Section(NO_EFFECT, "every step follows param_scheduler"),
    "RuntimeInfoHook": Section(NO_EFFECT, "rows hold every number"),
}
"""Hooks of mmengine, mmdet and mmdet3d that may stand in a config. Any other would change the training."""


EMA_TYPES: Mapping[str, str] = {
    "ExponentialMovingAverage": "ExponentialMovingAverage",
    "MomentumAnnealingEMA": "MomentumAnnealingEMA",
    "ExpMomentumEMA": "mmdet.ExpMomentumEMA",
}
"""What an ``EMAHook`` may name as its ``ema_type`` -> how mmdet3d's registry finds it."""

EMA_KEYS = ("momentum", "gamma", "interval")
"""Keys of an ``EMAHook`` that are followed."""

EMA_DEFAULTS: Mapping[str, Any] = {
    "device": None,
    "update_buffers": False,
    "begin_iter": 0,
    "begin_epoch": 0,
}
"""Keys of an ``EMAHook`` that may only have their defaults."""


@dataclass(frozen=True)
class Refusal:
    """A part of a config that would change the training, and that our loop does not follow.

    Attributes:
        key: its place.
        sentence: what it would do, and that it is not done.
        advice: what the user can do.
    """

    key: Key
    sentence: str
    advice: str


def refusals(config: Mapping[str, Any]) -> Iterator[Refusal]:
    """Yield what cannot be followed in a config, given as plain dicts and lists."""
    if config.get("resume"):
        yield Refusal(
            ("resume",),
            f"resume={config['resume']!r} would go on from a checkpoint of another training; a trial goes on "
            "only from its own",
            "remove it; load_from names weights to start from",
        )
    if (config.get("auto_scale_lr") or {}).get("enable"):
        yield Refusal(
            ("auto_scale_lr", "enable"),
            "auto_scale_lr would scale the learning rate with the batch, and nothing here does",
            "remove it, and give the rate for your batch in optim_wrapper.optimizer.lr",
        )
    if config.get("data_preprocessor"):
        yield Refusal(
            ("data_preprocessor",),
            "the Runner gives data_preprocessor to a model that has none, and nothing here does so",
            "give it to the model: model.data_preprocessor",
        )
    yield from _hooks(config)


def _hooks(config: Mapping[str, Any]) -> Iterator[Refusal]:
    """Yield the hooks that would change the training."""
    for key, name, hook in hooks_of(config):
        if name not in HOOKS:
            yield Refusal(
                key,
                f"the hook {name} would change the training, and this loop does not run it",
                f"remove it; known are {', '.join(HOOKS)}",
            )
        elif name == "EMAHook":
            yield from _average(key, hook)


def hooks_of(config: Mapping[str, Any]) -> Iterator[tuple[Key, str, Mapping[str, Any]]]:
    """Yield the place, the name and the keys of every hook of a config."""
    hooks: list[tuple[Key, Any]] = [
        (("custom_hooks", place), hook) for place, hook in enumerate(config.get("custom_hooks") or ())
    ]
    hooks += [(("default_hooks", name), hook) for name, hook in (config.get("default_hooks") or {}).items()]
    for key, hook in hooks:
        kind = hook.get("type") if isinstance(hook, Mapping) else hook
        if hook is not None:
            name = str(getattr(kind, "__name__", kind)).rpartition(".")[2]
            yield key, name, hook if isinstance(hook, Mapping) else {}


def _average(key: Key, hook: Mapping[str, Any]) -> Iterator[Refusal]:
    """Yield what of an ``EMAHook`` is not followed."""
    kind = str(hook.get("ema_type", "ExponentialMovingAverage"))
    if kind.rpartition(".")[2] not in EMA_TYPES:
        yield Refusal(
            (*key, "ema_type"),
            f"the average {kind} is not followed",
            f"take one of {', '.join(EMA_TYPES.values())}",
        )
    for name, value in hook.items():
        kept = EMA_DEFAULTS.get(name, value) == value
        if not kept or name not in (*EMA_KEYS, *EMA_DEFAULTS, "type", "ema_type", "strict_load", "priority"):
            yield Refusal(
                (*key, name),
                f"EMAHook with {name}={value!r} is not followed",
                f"remove it; followed are ema_type, {', '.join(EMA_KEYS)}",
            )
    for name, low, high in (("momentum", 0, 1), ("gamma", 0, math.inf), ("interval", 0.5, math.inf)):
        value = hook.get(name, 0.75)
        if not isinstance(value, int | float) or not low < value < high:
            yield Refusal(
                (*key, name),
                f"EMAHook with {name}={value!r} averages nothing",
                "momentum is above 0 and below 1, gamma above 0, and interval 1 or more",
            )


def without_effect(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the sections and hooks of a config that do nothing here: name -> what decides instead."""
    found = {
        name: SECTIONS[name].why
        for name, value in config.items()
        if name in SECTIONS and SECTIONS[name].fate == NO_EFFECT and value not in (None, {}, [], False)
    }
    for key, name, _ in hooks_of(config):
        if key[0] == "custom_hooks" and name in HOOKS and HOOKS[name].fate == NO_EFFECT:
            found[name] = HOOKS[name].why
    return found
