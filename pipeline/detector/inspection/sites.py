"""The attention sites of a config, read from its dicts without building anything."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from mmdet3d.registry import MODELS

from operators.grid import CAMERA, LIDAR
from pipeline.detector.aqr.bias_generator import UNIFORM, AttentionBiasGenerator, kind_of
from pipeline.detector.aqr.query_weights import AQR_KINDS
from pipeline.detector.transformer.site_attention import SiteSizes

Key: TypeAlias = tuple[str | int, ...]
"""Path to a key from the top of a config, such as ``("model", "pts_bbox_head", "tasks", 0)``."""

HEAD: Key = ("model", "pts_bbox_head")
PARTS = {"aqr": ("aqr_config", "encoder_config"), "decoder": ("transformer", "decoder")}
"""First part of a site's path -> keys of the head's config that lead to its ``transformerlayers``."""

VIEWS = 6
"""Number of cameras of nuScenes, for the number of keys."""


@dataclass(frozen=True)
class Site:
    """One attention site of a config.

    Attributes:
        name: path of the site.
        key: place of its entry of ``attn_cfgs``.
        cfg: that entry.
        default: its bias kind if the entry names none.
        kinds: bias kinds that are possible there.
        sizes: sizes of its calls in training; ``queries`` includes the largest number of denoising slots.
    """

    name: str
    key: Key
    cfg: Mapping[str, Any]
    default: str
    kinds: tuple[str, ...]
    sizes: SiteSizes


def sites_of(
    model: Mapping[str, Any], bev: tuple[int, int] | None = None, camera: tuple[int, int] | None = None
) -> list[Site]:
    """Return all sites of a config.

    Args:
        model: ``cfg.model`` as plain dicts.
        bev: rows and columns of the BEV map; if None and the head reads it, the number of keys is 0.
        camera: rows and columns of a camera map; likewise.

    Returns:
        The sites in the order of computation.
    """
    head = model["pts_bbox_head"]
    slots = int((head.get("denoising") or {}).get("scalar", 10) > 0) * int(head.get("num_query", 0))
    shown = {LIDAR: bev and math.prod(bev), CAMERA: camera and VIEWS * math.prod(camera)}
    read = [shown[sensor] for sensor in sensors_of(head)]
    keys = sum(number or 0 for number in read) if all(read) else 0
    sites = []
    for part in PARTS:
        for name, key, cfg in attn_cfgs(head, part):
            own = name.endswith(".self")
            heads, width = int(cfg.get("num_heads", 1)), int(cfg.get("embed_dims", 0))
            queries = int(head.get("num_query", 0)) + slots
            sizes = SiteSizes(
                heads, width // max(heads, 1), queries, queries if own else keys, own and slots > 0
            )
            default, kinds = ("local", AQR_KINDS) if part == "aqr" else _decoder_kinds(head, own)
            sites.append(Site(name, HEAD + key, cfg, default, kinds, sizes))
    return sites


def sensors_of(head: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the modalities that a head reads: both, unless its class says otherwise."""
    cls = MODELS.get(str(head.get("type")))
    return getattr(cls, "SENSORS", (LIDAR, CAMERA))


def _decoder_kinds(head: Mapping[str, Any], own: bool) -> tuple[str, tuple[str, ...]]:
    """Return the default bias kind of a decoder attention, and the kinds that are possible there."""
    if own:
        return "none", ("none",)
    generator = head.get("bias_config")
    kinds = ("none", *AttentionBiasGenerator.KINDS)
    if head.get("default_bias"):
        return head["default_bias"], kinds
    if generator is None:
        return "none", kinds
    if not generator.get("use_local_bias", True):
        return "global", kinds
    return kind_of(generator.get("fall_off", UNIFORM)), kinds


def attn_cfgs(head: Mapping[str, Any], part: str) -> Iterator[tuple[str, Key, dict[str, Any]]]:
    """Yield (site, key under the head, entry of ``attn_cfgs``) of a part. Layers may share an entry."""
    keys = PARTS[part]
    node: Any = head
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    layers = node.get("transformerlayers") if isinstance(node, Mapping) else None
    if layers is None:
        return
    one = isinstance(layers, Mapping)
    for i in range(int(node.get("num_layers", 1)) if one else len(layers)):
        layer: Any = layers if one else layers[i]
        path: Key = (*keys, "transformerlayers", *(() if one else (i,)))
        names = [op.removesuffix("_attn") for op in layer.get("operation_order", ()) if op.endswith("_attn")]
        for j, (name, cfg) in enumerate(zip(names, layer.get("attn_cfgs", ()), strict=False)):
            yield f"{part}.{i}.{name}", (*path, "attn_cfgs", j), cfg


def plain(node: Any) -> Any:
    """Convert mmengine's dicts to Python's, without the keys that mmengine adds."""
    if isinstance(node, Mapping):
        return {key: plain(value) for key, value in node.items() if key != "_scope_"}
    if isinstance(node, list | tuple):
        return type(node)(plain(value) for value in node)
    return node
