"""From a config file to a model: overrides, unread keys, plan, all checked before anything trains."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from pipeline.config.plan import Plan
from pipeline.config.provenance import read_source

# Imported for what they register in mmdet3d's registries.
from pipeline.detector.aqr import bias_generator, query_weights, weight_maps  # noqa: F401
from pipeline.detector.backbones import image, pillars, vovnet  # noqa: F401
from pipeline.detector.cmt_detector import CmtDetector
from pipeline.detector.head import box_coder, cmt_head, matching  # noqa: F401
from pipeline.detector.openmmlab.lr_schedule import read_length, read_schedule
from pipeline.detector.openmmlab.optimizer import AMP_WRAPPER, freeze, read_wrapper
from pipeline.storage.paths import ROOT

OURS = {"model", "optim_wrapper", "default_scope", "custom_imports"}
"""Sections of a config that we read; what mmengine's Runner reads may stand there too."""

RUNNER_SECTIONS = frozenset(
    {
        "auto_scale_lr",
        "cfg",
        "custom_hooks",
        "data_preprocessor",
        "default_hooks",
        "default_scope",
        "env_cfg",
        "experiment_name",
        "launcher",
        "load_from",
        "log_level",
        "log_processor",
        "model",
        "optim_wrapper",
        "param_scheduler",
        "randomness",
        "resume",
        "test_cfg",
        "test_dataloader",
        "test_evaluator",
        "train_cfg",
        "train_dataloader",
        "val_cfg",
        "val_dataloader",
        "val_evaluator",
        "visualizer",
        "work_dir",
    }
)
"""Sections that mmengine's Runner reads: its parameters, listed because its import takes half a second."""

VARIABLE = "_"
"""Names that begin so are variables of the config file itself."""


class ConfigError(ValueError):
    """A config that cannot be read, or a key in it that nobody reads."""


def build_model(
    config: str | Path,
    overrides: Sequence[tuple[str, str]] = (),
    plan: Plan | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> CmtDetector:
    """Build the detector of a config, with fresh weights drawn from torch's global generator.

    Args:
        config: mmengine config file; a relative path starts at the project root.
        overrides: see ``load_config``.
        plan: what every attention site does; None: what the config says.
        device: ``cpu`` or ``cuda``, where the model will run: some implementations run on one only. The
            model itself is returned on the CPU.
        dtype: of the attention inputs, ``bfloat16`` under autocast.

    Returns:
        The model in evaluation mode, with parameters frozen as ``optim_wrapper`` says.

    Raises:
        ConfigError: no such file, or a key nobody reads.
        pipeline.config.plan.PlanError: a plan that does not fit, or an implementation that cannot serve
            a bias.
        pipeline.detector.openmmlab.optimizer.OptimError: see there.
    """
    cfg = load_config(config, overrides)
    # mmengine's logger would print every initialisation; what matters here raises instead.
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    init_default_scope("mmdet3d")  # where unprefixed type names of configs are looked up
    try:
        model = MODELS.build(cfg.model)
    except TypeError as error:
        raise _unread_key(error, cfg) from error
    except KeyError as error:
        raise ConfigError(
            f"{config}: no class of that name can be built ({error.args[0]}); correct its type"
        ) from error
    model.init_weights()
    model.eval()
    model.apply_plan(plan or model.plan, device, dtype)
    freeze(model, cfg.optim_wrapper)
    return model


def load_config(config: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """Read a config file and replace values in it.

    Args:
        config: mmengine config file; a relative path starts at the project root.
        overrides: (dotted key, JSON text of the value); list entries by number. The value at the key is
            replaced as a whole, not merged. All but the last part of the key must exist.

    Raises:
        ConfigError: no such file, a section nobody reads, or an override that leads nowhere.
        OptimError, ScheduleError: ``optim_wrapper``, ``param_scheduler`` or ``train_cfg`` cannot be followed.
    """
    path = config_path(config)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program: it may raise anything
        raise ConfigError(
            f"{path}: cannot be read as a config ({type(error).__name__}: {error}); correct it, or its _base_"
        ) from error
    for key, text in overrides:
        _override(cfg, key, text)
    if any(key == "optim_wrapper.type" for key, _ in overrides) and cfg.optim_wrapper.type != AMP_WRAPPER:
        cfg.optim_wrapper.pop("dtype", None)  # of the autocast that the override takes away
    known = OURS | RUNNER_SECTIONS
    unread = [key for key in cfg if key not in known and not key.startswith(VARIABLE)]
    if unread:  # a name that the config itself reads is a variable of it
        used = read_source(path).used
        unread = [key for key in unread if key not in used]
    if unread:
        raise ConfigError(
            f"{path.name}: nobody reads {', '.join(unread)}; remove it, correct the name, "
            f"or begin the name of a variable with {VARIABLE!r}"
        )
    for section in ("model", "optim_wrapper"):
        if section not in cfg:
            raise ConfigError(f"{path.name}: the section {section!r} is missing")
    read_wrapper(cfg.optim_wrapper)
    read_schedule(cfg)
    read_length(cfg)
    return cfg


def config_path(config: str | Path) -> Path:
    """Find a config file; a relative path starts at the project root. ConfigError if there is none."""
    path = Path(config) if Path(config).is_absolute() else ROOT / config
    if not path.is_file():
        raise ConfigError(f"there is no config file {path}")
    return path


def _override(cfg: Config, key: str, text: str) -> None:
    """Replace one value of ``cfg``."""
    if key.startswith(VARIABLE):
        raise ConfigError(
            f"override {key}: it is a variable of the config file; override the keys that were made from it"
        )
    *parents, last = key.split(".")
    node: Any = cfg
    for i, part in enumerate(parents):
        node = _child(node, part, ".".join(parents[: i + 1]), key)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"override {key}: expected JSON, got {text!r} ({error})") from error
    if isinstance(node, dict | Config):
        node[last] = value
    else:
        _child(node, last, key, key)
        node[int(last)] = value


def _child(node: Any, part: str, at: str, key: str) -> Any:
    """Step into a dict or list of a config."""
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return node[int(part)]
    if isinstance(node, Mapping | Config) and part in node:
        return node[part]
    raise ConfigError(f"override {key}: the config has no {at}")


def _unread_key(error: TypeError, cfg: Config) -> ConfigError:
    """Turn a constructor's TypeError into a sentence about the config."""
    found = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if found is None:
        return ConfigError(f"the model cannot be built: {error}")
    owner, key = found.groups()
    places = sorted(_places(cfg.model, key, "model"))
    return ConfigError(
        f"{owner} does not read the key {key!r} ({', '.join(places) or 'set by its builder'}); remove it"
    )


def _places(node: Any, key: str, at: str) -> Iterator[str]:
    """Yield the dotted paths that end in ``key``."""
    items = (
        node.items()
        if isinstance(node, Mapping)
        else enumerate(node)
        if isinstance(node, list | tuple)
        else ()
    )
    for name, child in items:
        if name == key:
            yield f"{at}.{name}"
        yield from _places(child, key, f"{at}.{name}")
