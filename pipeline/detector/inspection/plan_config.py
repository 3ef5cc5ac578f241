"""Converts a config to a plan, and a plan to a config in the syntax that users know.

A printed config derives from the config that it was made of. It contains only what differs: the
``transformerlayers`` of the decoder and of AQR's encoder, and what overrides change.
"""

import json
import os
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from pathlib import Path
from typing import Any

from mmdet3d.registry import MODELS
from mmengine.registry import init_default_scope

from pipeline.config.plan import Plan, PlanError
from pipeline.detector import build
from pipeline.detector.inspection.meta_device import meta_device
from pipeline.detector.inspection.sites import PARTS, plain, sites_of
from pipeline.detector.transformer.site_attention import CHOICE_KEYS, standing_objections
from pipeline.storage.temporary import temporary_folder

WIDTH = 110
"""Largest number of characters in a printed line, as in the project's own files."""


def plan_of(
    config: str | Path, changes: Plan | None = None, overrides: Sequence[tuple[str, str]] = ()
) -> Plan:
    """Return the plan of a config. It needs no weights and runs on any machine.

    Args:
        config: mmengine config file; a relative path starts at the project root.
        changes: choices for some of the sites; later patterns override earlier ones.
        overrides: as in ``build.load_config``.

    Returns:
        The resolved plan.

    Raises:
        pipeline.detector.build.ConfigError: the config cannot be read.
        PlanError: a pattern matches no site, a bias is not possible at its site, nothing makes it, or the
            chosen implementation cannot train with it on any machine.
    """
    cfg = build.load_config(config, overrides)
    init_default_scope("mmdet3d")
    with meta_device(), build.refused_values(cfg, config):
        head = MODELS.build(cfg.model.pts_bbox_head)
    sites = head.sites
    for site, choice in (changes or Plan(())).overlaid(sites).items():
        sites[site].choice = choice  # raises PlanError if the bias is not possible there
        sizes = sites[site].sizes(head.num_query, head.denoising.scalar > 0)
        refused = {device: standing_objections(choice, sizes, device) for device in ("cuda", "cpu")}
        if all(refused.values()):
            reasons = "; ".join(dict.fromkeys(text for texts in refused.values() for text in texts))
            raise PlanError(f"{site} cannot train with {choice} on any machine: {choice.impl}: {reasons}")
    biased = [site for site, module in sites.items() if module.choice.bias != "none"]
    if biased and head.bias_generator is None:
        kind = sites[biased[0]].choice.bias
        raise PlanError(
            f"{biased[0]} cannot have the bias {kind!r}: nothing makes it, as the head has no bias_config; "
            f"`biaswise plan {config} --aqr --out NEW.py` adds AQR and a bias generator"
        )
    return Plan(tuple((site, module.choice) for site, module in sites.items()))


def print_config(
    config: str | Path, plan: Plan, folder: Path | None = None, overrides: Sequence[tuple[str, str]] = ()
) -> str:
    """Return a plan as the text of a config that derives from another.

    Args:
        config: the config whose model the plan is for; a relative path starts at the project root.
        plan: resolved or not; where overrides give a site a choice, too, the plan's counts.
        folder: folder in which the printed config will be; None: the working directory.
        overrides: as in ``build.load_config``.

    Returns:
        The text of a config file. It builds the same model as ``config`` with ``overrides`` and ``plan``.
        Where ``config`` has no data for mmengine's Runner, it derives from the config beside it that adds
        them (``*_runner.py``).

    Raises:
        pipeline.detector.build.ConfigError: the config cannot be read, or an override does not fit it.
        PlanError: the plan does not fit its sites.
    """
    path = build.config_path(config)
    base = _for_runner(path)
    before, overridden = (build.load_config(base, more).to_dict() for more in ((), overrides))
    head = plain(overridden["model"]["pts_bbox_head"])
    resolved = plan.resolve(site.name for site in sites_of({"pts_bbox_head": head}))
    lines = [f"# Plan {resolved.digest} of {path.name}.", ""]
    lines.append(f'_base_ = ["{os.path.relpath(base, folder or Path.cwd())}"]')
    changes: dict[str, Any] = {}
    for part, keys in PARTS.items():
        if any(site.startswith(f"{part}.") for site, _ in resolved.choices):
            variables, change = _layers(_under(head, keys), part, resolved)
            lines += [f"{name} = {literal(value, used=len(name) + 3)}" for name, value in variables.items()]
            for key in reversed(keys):
                change = {key: change}
            changes.update(change)
    sections = _merged(_difference(before, overridden), {"model": {"pts_bbox_head": changes}})
    lines += [f"{name} = {literal(value, used=len(name) + 3)}" for name, value in sections.items()]
    return "\n".join([*lines, ""])


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config that derives from ``before`` contains to be ``after``, with no section less."""
    found: dict[str, Any] = {}
    for key, value in after.items():
        if key in before and before[key] == value:
            continue
        if not (isinstance(value, dict) and key in before):
            found[key] = value
        elif isinstance(before[key], dict) and before[key].keys() <= value.keys():
            found[key] = _difference(before[key], value)
        else:  # mmengine would merge it into the base's value
            found[key] = {"_delete_": True, **value}
    return found


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts as one; where both have a value that is no dict, the other's counts."""
    found = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = _merged(found[key], value) if both else value
    return found


def _for_runner(path: Path) -> Path:
    """Return the config beside one without data that adds what mmengine's Runner needs; else the config."""
    runner = path.with_name(f"{path.stem}_runner.py")
    return runner if runner.is_file() and not build.load_config(path).get("train_dataloader") else path


def print_whole_config(config: str | Path, plan: Plan, overrides: Sequence[tuple[str, str]] = ()) -> str:
    """Return a plan as the text of a config that inherits from nothing.

    Args:
        config: the config whose model the plan is for; a relative path starts at the project root.
        plan: resolved or not.
        overrides: as in ``build.load_config``.

    Raises:
        pipeline.detector.build.ConfigError: the config cannot be read.
        PlanError: the plan does not fit its sites.
    """
    with temporary_folder("config") as folder:
        path = folder / "config.py"
        path.write_text(print_config(config, plan, folder, overrides), encoding="utf-8")
        return str(build.load_config(path).pretty_text)


def _layers(cfg: dict[str, Any], part: str, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the change of a config that gives its layers the plan's choices.

    Returns:
        Variables to define, and the change, which uses them.
    """
    given = cfg["transformerlayers"]
    layers = [given] * cfg.get("num_layers", 1) if isinstance(given, dict) else given
    attentions = [_attentions(layer, f"{part}.{i}", plan) for i, layer in enumerate(layers)]
    name = Code(f"_{part}")
    if isinstance(given, dict) and all(attention == attentions[0] for attention in attentions):
        # A dict is merged into that of the base config, so the rest of the layer stays as it is.
        return {name: attentions[0]}, {"transformerlayers": {"attn_cfgs": name}}
    # A list replaces that of the base config, so it must be complete.
    rests = [{key: value for key, value in layer.items() if key != "attn_cfgs"} for layer in layers]
    shared = Code(f"_{part}_layer")
    if any(rest != rests[0] for rest in rests):
        each = [{**rest, "attn_cfgs": a} for rest, a in zip(rests, attentions, strict=True)]
        return {name: each}, {"transformerlayers": name}
    each = [{f"**{shared}": None, "attn_cfgs": attention} for attention in attentions]
    return {shared: rests[0], name: each}, {"transformerlayers": name}


def _attentions(layer: Mapping[str, Any], path: str, plan: Plan) -> list[dict[str, Any]]:
    """Return the ``attn_cfgs`` of a layer with the plan's choices."""
    names = [op.removesuffix("_attn") for op in layer["operation_order"] if op.endswith("_attn")]
    entries = []
    for name, cfg in zip(names, layer["attn_cfgs"], strict=True):
        choice = plan[f"{path}.{name}"]
        kept = {k: v for k, v in cfg.items() if k not in CHOICE_KEYS}
        further = {"window": choice.window, "rank": choice.rank}
        named = {key: value for key, value in further.items() if value is not None}
        entries.append({**kept, "bias": choice.bias, "impl": choice.impl, **named})
    return entries


def _under(node: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        if key not in node:
            raise PlanError(f"model.pts_bbox_head has no {'.'.join(keys)}, where the plan has sites")
        node = node[key]
    return node


class Code(str):
    """Text that is printed without quotes, such as the name of a variable."""

    __slots__ = ()


def literal(value: Any, indent: int = 0, used: int = 0) -> str:
    """Return a value as it is written in configs: with ``dict(...)``, in one line if it fits.

    Args:
        value: dicts (the key ``**name`` unpacks a variable), lists, tuples and plain values.
        indent: indentation, in columns, of a value that spans several lines.
        used: number of columns before the value in its line.
    """
    if isinstance(value, Code):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value)  # in double quotes
    if not isinstance(value, dict | list | tuple):
        return repr(value)
    items = _items(value)
    opening, closing = {dict: ("dict(", ")"), list: ("[", "]"), tuple: ("(", ")")}[type(value)]
    if isinstance(value, dict) and not _names(value):
        opening, closing = "{", "}"
    flat = opening + ", ".join(head + literal(item, used=-(10**6)) for head, item in items)
    flat += ("," if isinstance(value, tuple) and len(value) == 1 else "") + closing
    if used + len(flat) < WIDTH or not value:
        return flat
    inner = " " * (indent + 4)
    lines = [f"{inner}{head}{literal(item, indent + 4, indent + 4 + len(head))},\n" for head, item in items]
    return opening + "\n" + "".join(lines) + " " * indent + closing


def _items(value: dict[str, Any] | list[Any] | tuple[Any, ...]) -> list[tuple[str, Any]]:
    """Return (text before the item: ``key=``, ``**name`` or nothing; the item) for every item of a value."""
    if not isinstance(value, dict):
        return [("", item) for item in value]
    if not _names(value):
        return [(f"{json.dumps(key)}: ", item) for key, item in value.items()]
    return [(key, Code("")) if key.startswith("**") else (f"{key}=", item) for key, item in value.items()]


def _names(value: dict[str, Any]) -> bool:
    """Whether every key can stand before ``=``."""
    return all(key.startswith("**") or (key.isidentifier() and not iskeyword(key)) for key in value)
