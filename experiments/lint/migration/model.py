"""The model of a config of mmcv 1.x as today's: same parameters, with the keys that our classes read."""

import copy
from collections.abc import Mapping
from typing import Any

from experiments.lint.migration.lost import Ledger
from pipeline.config.provenance import Key
from pipeline.detector.inspection.sites import attn_cfgs
from pipeline.detector.inspection.survey import registered_name

HEAD: Key = ("model", "pts_bbox_head")

HEAD_DEFAULTS: Mapping[str, Any] = {"num_query": 900, "hidden_dim": 128, "depth_num": 64}
"""Defaults of CMT's head that ours does not have."""

NOISE = ("scalar", "noise_scale", "noise_trans", "dn_weight", "split")
"""Keys of CMT's head that ours has in ``denoising``."""

IMPLS = {"self": "sdpa_efficient", "cross": "sdpa_flash"}
"""Attention -> the implementation that computes what CMT's does; the first takes the denoising mask."""

UNREAD_BY_HEAD = {
    "downsample_scale": "the size of the BEV map is that of its features",
    "norm_bbox": "CMT's code does not use it either",
    "loss_heatmap": "CMT's code builds it and never uses it",
    "test_cfg": "there is no NMS, and CMT's code does not read it either",
}
UNREAD_BY_CODER = {"voxel_size": "CMT's code does not use it either"}
UNREAD_BY_TRAINING = dict.fromkeys(
    (
        "dataset", "pos_weight", "gaussian_overlap", "min_radius", "voxel_size", "out_size_factor",
        "point_cloud_range",
    ),
    "CMT's code does not use it either",
) | {"grid_size": "the size of the BEV map is that of its features"}  # fmt: skip
UNREAD_BY_LAYER = {
    "feedforward_channels": "ffn_cfgs says it",
    "batch_first": "the layout of a tensor changes no result",
}


def migrate_model(old: Mapping[str, Any], ledger: Ledger) -> dict[str, Any]:
    """Return the model's config.

    Args:
        old: ``cfg.model`` as plain dicts.
        ledger: gets what has no counterpart.
    """
    model: dict[str, Any] = copy.deepcopy(dict(old))
    ledger.pop(model, ("model",), {"test_cfg": "there is no NMS, and CMT's code does not read it either"})
    _pretrained(model, ledger)
    for part in ("img_backbone", "img_neck", "pts_backbone", "pts_neck"):
        if isinstance(model.get(part), dict) and "type" in model[part]:
            model[part]["type"] = registered_name(model[part]["type"])
    if isinstance(model.get("pts_bbox_head"), dict):
        model["pts_bbox_head"] = _head(model["pts_bbox_head"], ledger)
    train = (model.get("train_cfg") or {}).get("pts")
    if isinstance(train, dict):
        at: Key = ("model", "train_cfg", "pts")
        ledger.pop(train, at, UNREAD_BY_TRAINING)
        if isinstance(train.get("assigner"), dict):
            train["assigner"].pop("pc_range", None)  # that of bbox_coder
    return model


def _pretrained(model: dict[str, Any], ledger: Ledger) -> None:
    """Turn ``pretrained`` into the ``init_cfg`` of the image backbone."""
    given = model.pop("pretrained", None)
    backbone = model.get("img_backbone")
    if isinstance(given, Mapping):
        given = given.get("img")
    if isinstance(backbone, dict):
        given = backbone.pop("pretrained", None) or given
        if given and "init_cfg" not in backbone:
            backbone["init_cfg"] = {"type": "Pretrained", "checkpoint": given}
    elif given:
        ledger.lose(("model", "pretrained"), "pretrained is left out: there is no image backbone")


def _head(old: dict[str, Any], ledger: Ledger) -> dict[str, Any]:
    head = {**HEAD_DEFAULTS, **old}
    order = [*old, *(key for key in HEAD_DEFAULTS if key not in old)]
    head = {key: head[key] for key in order}
    ledger.pop(head, HEAD, UNREAD_BY_HEAD)
    noise = {key: head.pop(key) for key in NOISE if key in head}
    if noise:
        head["denoising"] = noise
    if isinstance(head.get("bbox_coder"), dict):
        ledger.pop(head["bbox_coder"], (*HEAD, "bbox_coder"), UNREAD_BY_CODER)
    for name in ("loss_cls", "loss_bbox"):
        if isinstance(head.get(name), dict):
            _mean_only(head[name], (*HEAD, name), ledger)
    for part in ("decoder", "aqr"):
        for site, _, attention in attn_cfgs(head, part):
            kind = site.rpartition(".")[2]
            attention.pop("flash_attn", None)
            if not attention.get("use_flashbias") and "bias" not in attention:
                attention.setdefault("impl", IMPLS[kind])
    _layers(head, ledger)
    return head


def _mean_only(loss: dict[str, Any], at: Key, ledger: Ledger) -> None:
    if loss.pop("reduction", "mean") != "mean":
        ledger.lose((*at, "reduction"), "reduction is left out: losses are means, as in CMT", True)


def _layers(head: dict[str, Any], ledger: Ledger) -> None:
    decoder = (head.get("transformer") or {}).get("decoder") or {}
    layers = decoder.get("transformerlayers")
    at: Key = (*HEAD, "transformer", "decoder", "transformerlayers")
    for place, layer in enumerate(layers if isinstance(layers, list) else [layers]):
        if isinstance(layer, dict) and "ffn_cfgs" in layer:
            ledger.pop(layer, (*at, place) if isinstance(layers, list) else at, UNREAD_BY_LAYER)
