"""Survey of a config: its parts are built one by one on the meta device.

It needs no weights, no data, no GPU and no compiled op. A part that does not build is reported, and the
others are built all the same, so that one survey finds all problems. ``experiments.lint`` judges the facts
that are collected here.
"""

import copy
import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdet.registry import MODELS as MMDET_MODELS
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import nn

from pipeline.config.sections import SECTIONS
from pipeline.detector import build
from pipeline.detector.cmt_detector import with_train_cfg
from pipeline.detector.inspection import shapes
from pipeline.detector.inspection.meta_device import meta_device
from pipeline.detector.inspection.shapes import Join
from pipeline.detector.inspection.sites import HEAD, PARTS, Key, Site, attn_cfgs, plain, sites_of
from pipeline.detector.openmmlab.config_files import read_config, refuse_image_size, refuse_unregistered
from pipeline.detector.openmmlab.lr_schedule import ScheduleError, read_length, read_schedule
from pipeline.detector.openmmlab.optimizer import OptimError, read_wrapper
from pipeline.detector.transformer.site_attention import DEFAULT_IMPL
from pipeline.redaction import refuse_secrets

PACKAGES = ("spconv",)
"""Packages that a part may need, and that may be missing on a machine where configs are edited."""

_UNREAD = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")


@dataclass
class Survey:
    """Facts about a config.

    Attributes:
        model: ``cfg.model`` as plain dicts.
        sections: all other sections as plain dicts, without variables.
        sites: the attention sites, in the order of computation.
        unread: (class that does not read the key, key).
        failed: (key of a part, message of the error).
        left_out: (key of a part, message of the error) of parts that could be built on another machine.
        joins: pairs of numbers that must agree.
        stuck: key of a part that refuses its input -> what it says.
        bev, camera: rows and columns of the maps that the head reads; None if they could not be computed.
        parameters: names of the parameters of all parts that were built.
        custom_keys: keys of ``optim_wrapper.paramwise_cfg.custom_keys`` that are in no parameter's name.
    """

    model: dict[str, Any]
    sections: dict[str, Any] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    unread: list[tuple[str, Key]] = field(default_factory=list)
    failed: list[tuple[Key, str]] = field(default_factory=list)
    left_out: list[tuple[Key, str]] = field(default_factory=list)
    joins: list[Join] = field(default_factory=list)
    stuck: dict[Key, str] = field(default_factory=dict)
    bev: tuple[int, int] | None = None
    camera: tuple[int, int] | None = None
    parameters: list[str] = field(default_factory=list)
    custom_keys: list[str] = field(default_factory=list)

    @property
    def maps(self) -> dict[str, tuple[int, int] | None]:
        """Name of each map that the head reads -> its rows and columns; None if they are not known."""
        return {"BEV": self.bev, "camera": self.camera}


def survey(config: Path) -> Survey:
    """Survey a config.

    Args:
        config: mmengine config file.

    Raises:
        ConfigError: the file cannot be read as a config, or has no model.
    """
    cfg = _load(config)
    sections = {key: plain(cfg[key]) for key in cfg if key != "model" and not key.startswith(build.VARIABLE)}
    facts = Survey(plain(cfg.model), sections)
    init_default_scope("mmdet3d")
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    modules = _build_parts(facts)
    facts.parameters = [
        f"{part}.{name}" for part, module in modules.items() for name, _ in module.named_parameters()
    ]
    found = shapes.flow(facts.model, modules)
    facts.bev, facts.camera, facts.joins, facts.stuck = found.bev, found.camera, found.joins, found.stuck
    facts.sites = sites_of(facts.model, facts.bev, facts.camera)
    _survey_sections(cfg, facts)
    return facts


def registered_name(name: str) -> str:
    """Return the name by which mmdet3d's registry finds a part of a model: ``mmdet.`` before mmdet's."""
    if "." in name or MODELS.get(name) is not None or MMDET_MODELS.get(name) is None:
        return name
    return f"mmdet.{name}"


def is_registered(name: str) -> bool:
    """Whether mmdet3d's registry builds a model or a part of one by that name."""
    return MODELS.get(name) is not None


def _load(config: Path) -> Config:
    cfg = read_config(config)
    refuse_secrets(cfg.to_dict(), config.name)
    refuse_unregistered(cfg, config.name)
    refuse_image_size(cfg, config.name)
    if not isinstance(cfg.get("model"), Mapping) or not isinstance(cfg.model.get("pts_bbox_head"), Mapping):
        raise build.ConfigError(f"{config}: expected a model with a pts_bbox_head, found none")
    return cfg


def _build_parts(facts: Survey) -> dict[str, nn.Module]:
    """Build every part of the model by itself; note unknown keys and errors."""
    detector = MODELS.get(str(facts.model.get("type")))
    if detector is None:
        facts.failed.append((("model", "type"), f"no model is registered as {facts.model.get('type')!r}"))
    else:
        known = {"type", "train_cfg", *inspect.signature(detector.__init__).parameters}
        unread = [key for key in facts.model if key not in known]
        facts.unread += [(detector.__name__, ("model", key)) for key in unread]
    modules = {}
    for part, cfg in facts.model.items():
        if isinstance(cfg, Mapping) and "type" in cfg and part != "train_cfg":
            given = copy.deepcopy(dict(cfg))
            if ("model", part) == HEAD:
                given = _with_train_cfg(given, facts)
            module = _build_part(given, ("model", part), facts)
            if module is not None:
                modules[part] = module
    return modules


def _with_train_cfg(head: dict[str, Any], facts: Survey) -> dict[str, Any]:
    """Return the head's config with ``model.train_cfg``, as the detector builds it; note what is wrong."""
    try:
        return with_train_cfg(head, facts.model.get("train_cfg"))
    except ValueError as error:
        facts.failed.append((("model", "train_cfg"), str(error)))
        return head


def _build_part(cfg: dict[str, Any], key: Key, facts: Survey) -> nn.Module | None:
    """Build one part. If it has an unknown key, note the key and build again without it."""
    if key == HEAD:
        _neutralise(cfg)
    while True:
        try:
            with meta_device():
                module: nn.Module = MODELS.build(copy.deepcopy(cfg))
            return module
        except Exception as error:  # noqa: BLE001  whatever a constructor raises is a fact about the config
            match = _UNREAD.search(str(error)) if isinstance(error, TypeError) else None
            places = _owned(cfg, match.group(1), match.group(2)) if match else []
            if match and places:
                for place in places:
                    _pop(cfg, place)
                    facts.unread.append((match.group(1), key + place))
                continue
            missing = any(name in str(error) for name in PACKAGES)
            (facts.left_out if missing else facts.failed).append((key, _sentence(error)))
            return None


def _neutralise(head: dict[str, Any]) -> None:
    """Remove all biases from a head, because its sites are judged one by one and not by building."""
    head["default_bias"] = "none"
    for part in PARTS:
        for _, _, cfg in attn_cfgs(head, part):
            kept: dict[str, Any] = {k: cfg[k] for k in ("embed_dims", "num_heads") if k in cfg}
            cfg.clear()
            bias = "local" if part == "aqr" else "none"
            cfg.update(kept, type="PETRMultiheadFlashAttention", bias=bias, impl=DEFAULT_IMPL)


def _survey_sections(cfg: Config, facts: Survey) -> None:
    """Note unknown keys and errors outside the model."""
    facts.unread += [
        ("anybody", (key,)) for key in cfg if key not in SECTIONS and not key.startswith(build.VARIABLE)
    ]
    wrapper = plain(cfg.get("optim_wrapper") or {})
    try:
        read_wrapper(wrapper)
    except OptimError as error:
        facts.failed.append((("optim_wrapper",), str(error)))
    for section, read in (("param_scheduler", read_schedule), ("train_cfg", read_length)):
        try:
            read(facts.sections)
        except ScheduleError as error:
            facts.failed.append(((section,), str(error)))
    custom = ((wrapper.get("paramwise_cfg") or {}).get("custom_keys")) or {}
    built_elsewhere = [str(key[-1]) for key, _ in facts.left_out]
    names = [*facts.parameters, *built_elsewhere]
    if not facts.failed:  # otherwise a name may be missing because its part was not built
        facts.custom_keys = [
            key
            for key in custom
            if not any(key in name for name in names)
            and not any(key.startswith(f"{part}.") for part in built_elsewhere)
        ]


def _owned(cfg: Any, owner: str, key: str, at: Key = ()) -> list[Key]:
    """List the places of ``key`` in dicts that configure ``owner``, or, if there are none, anywhere."""
    places = [place for place in _walk(cfg, at) if place[-1] == key]
    mine = [place for place in places if _is_of(cfg, place[:-1], owner)]
    return mine or places


def _walk(node: Any, at: Key) -> Iterator[Key]:
    items = (
        node.items()
        if isinstance(node, Mapping)
        else enumerate(node)
        if isinstance(node, list | tuple)
        else ()
    )
    for name, child in items:
        yield (*at, name)
        yield from _walk(child, (*at, name))


_OWNERS = {
    "DecoderLayer": "operation_order",
    "Decoder": "return_intermediate",
    "FFN": "feedforward_channels",
    "AqrEncoder": "transformerlayers",
}
"""Class that configs do not name -> a key that identifies the dict that configures it."""


def _is_of(cfg: Any, at: Key, owner: str) -> bool:
    node = cfg
    for part in at:
        node = node[part]
    if not isinstance(node, Mapping):
        return False
    if owner in _OWNERS:
        return _OWNERS[owner] in node
    kind = node.get("type")
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    return name.rpartition(".")[2] == owner


def _pop(cfg: Any, at: Key) -> None:
    for part in at[:-1]:
        cfg = cfg[part]
    cfg.pop(at[-1])


def _sentence(error: Exception) -> str:
    """Return the message of an error without the prefix that mmengine's registry adds."""
    text = str(error).strip().splitlines()
    message = text[0] if text else type(error).__name__
    message = re.sub(r"^class `\w+` in [^:]+: ", "", message)
    return message.partition(" Please check ")[0].strip("'\"")
