"""AQR and a bias generator for a config of CMT, taken from the shipped config of the nearest image size."""

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.lint.finding import LintError
from operators.grid import CAMERA, LIDAR
from pipeline.detector.build import load_config
from pipeline.detector.inspection.sites import attn_cfgs, plain, sensors_of

SHIPPED = {
    (320, 800): "experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py",
    (640, 1600): "experiments/configs/cmt_aqr_voxel0075_vov_1600x640_cbgs.py",
    (96, 240): "experiments/configs/cmt_aqr_pillar_mini.py",
}
"""Height and width of the images -> config of CMT-AQR; its windows fit maps of that size."""

BRANCHES = ("img_backbone", "pts_backbone", "pts_middle_encoder", "pts_branch")
"""Parts of a model that CMT-AQR freezes."""

SENSORS = ("img_", "pts_")
"""What the name of a part of one sensor begins with."""

EMBEDDINGS = {LIDAR: "bev_embedding", CAMERA: "rv_embedding"}
"""Of the sensors' keys; a head of one sensor has its own alone."""


@dataclass(frozen=True)
class Added:
    """What makes a config of CMT one of CMT-AQR.

    Attributes:
        source: the shipped config that it is taken from.
        overrides: of the config, as ``load_config`` takes them.
        choices: of the decoder's cross-attention, a plan.
    """

    source: str
    overrides: tuple[tuple[str, str], ...]
    choices: str


def add_aqr(config: Path) -> Added:
    """Return what makes a config of CMT one of CMT-AQR.

    AQR and bias are those of the shipped config, as wide as the config's head. The branches are frozen, the
    rest learns with the shipped config's multipliers. Learning rate, schedule and data stay the config's.

    Raises:
        LintError: the config has AQR already.
        pipeline.detector.build.ConfigError: the config cannot be read.
    """
    cfg = plain(load_config(config).to_dict())
    model, head = cfg["model"], cfg["model"]["pts_bbox_head"]
    if head.get("aqr_config") or head.get("bias_config"):
        raise LintError(f"{config}: its head has aqr_config or bias_config already; leave --aqr out")
    source = nearest(model)
    shipped = plain(load_config(source).to_dict())
    theirs = shipped["model"]["pts_bbox_head"]
    parts = {name: copy.deepcopy(theirs[name]) for name in ("aqr_config", "bias_config")}
    _widen(parts, head["hidden_dim"])
    cross = next(entry for site, _, entry in attn_cfgs(theirs, "decoder") if site.endswith(".cross"))
    multipliers = {"custom_keys": _multipliers(shipped, model)}
    paramwise = {**(cfg["optim_wrapper"].get("paramwise_cfg") or {}), **multipliers}
    values = {f"model.pts_bbox_head.{name}": part for name, part in parts.items()}
    values["optim_wrapper.paramwise_cfg"] = paramwise
    overrides = tuple((key, json.dumps(value)) for key, value in values.items())
    return Added(source, overrides, f"decoder.*.cross={cross['bias']}/{cross['impl']}")


def nearest(model: Mapping[str, Any]) -> str:
    """Return the shipped config of CMT-AQR whose images are nearest in size to those of a model."""
    size = model.get("image_size") or next(iter(SHIPPED))
    closest = min(SHIPPED, key=lambda shipped: abs(math.log(math.prod(size) / math.prod(shipped))))
    return SHIPPED[closest]


def _widen(node: Any, channels: int) -> None:
    """Set every ``embed_dims``."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key == "embed_dims":
            node[key] = channels
        elif isinstance(value, dict | list):
            _widen(value, channels)


def _multipliers(shipped: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shipped multipliers of the learning rate, less those of parts that the model has not."""
    frozen = {part: {"lr_mult": 0.0} for part in BRANCHES if model.get(part)}
    blind = {key for sensor, key in EMBEDDINGS.items() if sensor not in sensors_of(model["pts_bbox_head"])}
    theirs = shipped["optim_wrapper"]["paramwise_cfg"]["custom_keys"]
    for key, value in theirs.items():
        part = key.split(".")[0]
        if part not in BRANCHES and key not in blind and (model.get(part) or not part.startswith(SENSORS)):
            frozen[key] = value
    return frozen
