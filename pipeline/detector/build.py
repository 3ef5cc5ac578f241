"""Builds a model from a config file: overrides, unknown keys and the plan are checked before training."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from pipeline.config.plan import Plan
from pipeline.config.previous import ADVICE, old_sections, sentence
from pipeline.config.provenance import read_source
from pipeline.config.sections import SECTIONS

# Imported because they register their classes in mmdet3d's registries.
from pipeline.detector.aqr import bias_generator, query_weights, weight_maps  # noqa: F401
from pipeline.detector.backbones import image, pillars, vovnet  # noqa: F401
from pipeline.detector.cmt_detector import CmtDetector
from pipeline.detector.head import box_coder, cmt_head, matching  # noqa: F401
from pipeline.detector.openmmlab.config_files import ConfigError as ConfigError
from pipeline.detector.openmmlab.config_files import read_config, refuse_image_size, refuse_unregistered
from pipeline.detector.openmmlab.lr_schedule import read_length, read_schedule
from pipeline.detector.openmmlab.optimizer import AMP_WRAPPER, freeze, read_wrapper
from pipeline.errors import is_user_error
from pipeline.json_files import parse_json
from pipeline.redaction import refuse_secrets
from pipeline.storage.paths import resolve_path

VARIABLE = "_"
"""Names with this prefix are variables of the config file itself."""


def build_model(
    config: str | Path,
    overrides: Sequence[tuple[str, str]] = (),
    plan: Plan | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> CmtDetector:
    """Build the detector of a config, with initial weights from torch's global generator.

    Args:
        config: mmengine config file; a relative path is that of ``resolve_path``.
        overrides: see ``load_config``.
        plan: choice of every attention site; None: that of the config.
        device: ``cpu`` or ``cuda``, where the model will run, because some implementations run on one only.
            The model itself is returned on the CPU.
        dtype: of the attention inputs, ``bfloat16`` under autocast.

    Returns:
        The model in evaluation mode, with the parameters frozen that ``optim_wrapper`` freezes, and with its
        trunk found.

    Raises:
        ConfigError: no such file, an unknown key, or a value that a part of the model refuses.
        pipeline.config.plan.PlanError: the plan does not fit, or an implementation cannot serve a bias.
        pipeline.detector.openmmlab.optimizer.OptimError: ``optim_wrapper`` cannot be read.
    """
    cfg = load_config(config, overrides)
    # mmengine's logger would print every initialisation; problems are raised as errors.
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    init_default_scope("mmdet3d")  # where unprefixed type names of configs are looked up
    with refused_values(cfg, config):
        model = MODELS.build(cfg.model)
    model.init_weights()
    model.eval()
    model.apply_plan(plan or model.plan, device, dtype)
    freeze(model, cfg.optim_wrapper)
    model.find_trunk()
    return model


@contextmanager
def refused_values(cfg: Config, config: str | Path) -> Iterator[None]:
    """Turn what the parts of a model raise about values of its config into one sentence.

    Args:
        cfg: the config.
        config: its file.

    Raises:
        ConfigError: a part was refused; errors that are a sentence already stay what they are.
    """
    try:
        yield
    except (TypeError, KeyError, ValueError, AssertionError) as error:
        if is_user_error(error):
            raise
        raise _config_error(error, cfg, config) from error


def _config_error(error: Exception, cfg: Config, config: str | Path) -> ConfigError:
    if isinstance(error, TypeError):
        return _unread_key(error, cfg)
    if not isinstance(error, KeyError):
        return ConfigError(f"{config}: the model cannot be built: {error}")
    what = str(error.args[0])
    if "registry" in what:  # mmengine's sentence
        return ConfigError(f"{config}: no class of that name can be built ({what}); correct its type")
    return ConfigError(f"{config}: a part of the model lacks the key {what!r}; add it")


def load_config(config: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """Read a config file and replace values in it.

    Args:
        config: mmengine config file; a relative path is that of ``resolve_path``.
        overrides: (dotted key, JSON text of the value); list entries by number. The value at the key is
            replaced as a whole, not merged. All but the last part of the key must exist.

    Raises:
        ConfigError: no such file, a config of mmcv 1.x, an unknown section, an override whose key does not
            exist, or a type that is in no registry.
        SecretError: a value is a secret, such as that of an environment variable.
        OptimError, ScheduleError: ``optim_wrapper``, ``param_scheduler`` or ``train_cfg`` cannot be read.
    """
    path = config_path(config)
    cfg = read_config(path)
    if old := old_sections(cfg):
        raise ConfigError(f"{path.name}: {sentence(old)}; {ADVICE}")
    for key, text in overrides:
        _override(cfg, key, text)
    if any(key == "optim_wrapper.type" for key, _ in overrides) and cfg.optim_wrapper.type != AMP_WRAPPER:
        cfg.optim_wrapper.pop("dtype", None)  # it belongs to the autocast that the override switches off
    refuse_secrets(cfg.to_dict(), path.name)
    refuse_unregistered(cfg, path.name)
    refuse_image_size(cfg, path.name)
    unread = [key for key in cfg if key not in SECTIONS and not key.startswith(VARIABLE)]
    if unread:  # names that the config itself uses are its variables
        used = read_source(path).used
        unread = [key for key in unread if key not in used]
    if unread:
        raise ConfigError(
            f"{path.name}: unknown keys {', '.join(unread)}; remove them, correct the name, "
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
    """Return the path of a config file; a relative path is that of ``resolve_path``.

    Raises:
        ConfigError: there is no such file.
    """
    path = resolve_path(config)
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
        (value,) = parse_json(f"[{text}]", list)
    except ValueError as error:
        raise ConfigError(f"override {key}: expected JSON, got {text!r} ({error})") from error
    if isinstance(node, dict | Config):
        node[last] = value
    else:
        _child(node, last, key, key)
        node[int(last)] = value


def _child(node: Any, part: str, at: str, key: str) -> Any:
    """Return the entry ``part`` of a dict or list of a config."""
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return node[int(part)]
    if isinstance(node, Mapping | Config) and part in node:
        return node[part]
    raise ConfigError(f"override {key}: the config has no {at}")


def _unread_key(error: TypeError, cfg: Config) -> ConfigError:
    """Return the ConfigError for a constructor's TypeError; it names the key and its place."""
    match = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if match is None:
        return ConfigError(f"the model cannot be built: {error}")
    owner, key = match.groups()
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
