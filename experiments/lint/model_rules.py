"""Rules about the rest of a model: shapes, windows, grids, and keys that no class reads."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.lint.attention_rules import read_choice
from experiments.lint.finding import Finding
from operators.grid import CAMERA, LIDAR
from operators.spec import WINDOWED_KINDS
from pipeline.config.provenance import Key
from pipeline.config.sections import refusals
from pipeline.detector.inspection.sites import HEAD, sensors_of
from pipeline.detector.inspection.survey import Survey

PUBLISHED_GRID = (1080, 1024)
"""CMT's published R50 config: voxels along a side of its range, and cells along a side of its grid."""


def check_model(survey: Survey, used: frozenset[str]) -> Iterator[Finding]:
    """Yield the findings about a config outside its attention sites and pipelines.

    Args:
        survey: the survey of the config.
        used: names of the variables that the config reads.
    """
    yield from _unread(survey, used)
    for refusal in refusals(survey.sections):
        yield Finding("not-followed", refusal.key, refusal.sentence, refusal.advice)
    yield from _shapes(survey)
    yield from _windows(survey)
    yield from _grid(survey.model)
    yield from _branches(survey.model)
    for key, sentence in survey.failed:
        yield Finding(
            "cannot-build",
            key,
            f"{key[-1]} cannot be built: {sentence.rstrip('.')}",
            "correct its name, or name the module of your own class in custom_imports"
            if "registry" in sentence
            else "correct what it names",
        )


def _branches(model: Mapping[str, Any]) -> Iterator[Finding]:
    """Find a branch that the head reads and the model has not, and one that it has for nothing."""
    wanted = sensors_of(model["pts_bbox_head"])
    kind = model["pts_bbox_head"].get("type")
    branches = {LIDAR: ("pts_branch", "pts_backbone"), CAMERA: ("img_backbone",)}
    for sensor, parts in branches.items():
        there = [part for part in parts if model.get(part)]
        if bool(there) != (sensor in wanted):
            part, verb = (parts[0], "needs") if sensor in wanted else (there[0], "does not read")
            yield Finding(
                "cannot-build",
                (*HEAD, "type"),
                f"{kind} {verb} {part}: the model cannot be built",
                "take CmtHead for both sensors, CmtImageHead for cameras or CmtLidarHead for the LiDAR alone",
            )


def _unread(survey: Survey, used: frozenset[str]) -> Iterator[Finding]:
    for owner, key in survey.unread:
        name = str(key[-1])
        who = "nothing here reads" if len(key) == 1 else f"{owner} does not read"
        if len(key) == 1 and name in used:
            continue  # a variable of the file
        if "drop" in name:
            yield Finding(
                "dropout",
                key,
                f"{who} {name}, so nothing would be dropped",
                "set `dropout` in an entry of attn_cfgs (the residual branch) and `ffn_drop` in ffn_cfgs",
            )
            continue
        advice = "remove it or correct its name"
        if len(key) == 1:
            advice += "; the name of a variable begins with an underscore"
        yield Finding("unused-key", key, f"{who} {name!r}: it would be ignored", advice)
    for name in survey.custom_keys:
        yield Finding(
            "unused-key",
            ("optim_wrapper", "paramwise_cfg", "custom_keys", name),
            f"no parameter's name contains {name!r}: this multiplier applies to nothing",
            "remove it or correct the name",
        )


def _shapes(survey: Survey) -> Iterator[Finding]:
    for join in survey.joins:
        if not join.fits:
            name = ".".join(map(str, join.key[1:]))
            verb = "is" if join.giver == "hidden_dim" else "gives"
            yield Finding(
                "shapes-disagree",
                join.key,
                f"{name} is {join.takes}, but {join.giver} {verb} {join.gives}: the first batch would fail",
                f"set {join.key[-1]}={join.gives}, or change {join.giver}",
            )
    for key, sentence in survey.stuck.items():
        yield Finding(
            "shapes-disagree",
            key,
            f"{'.'.join(map(str, key[1:]))} refuses its input: {sentence}: the first batch would fail",
            "correct what it names",
        )
    yield from _scales(survey)
    yield from _image_size(survey.model)


def _scales(survey: Survey) -> Iterator[Finding]:
    """Find a number of bias scales that is neither 1 nor the number of decoder layers."""
    generator = survey.model["pts_bbox_head"].get("bias_config") or {}
    layers = sum(site.name.startswith("decoder") and site.name.endswith(".cross") for site in survey.sites)
    scales = generator.get("num_scales", 1)
    if scales not in (1, layers):
        yield Finding(
            "shapes-disagree",
            (*HEAD, "bias_config", "num_scales"),
            f"num_scales is {scales}, but the decoder has {layers} layers: the first batch would fail",
            f"set 1 (one scale for all layers) or {layers} (one for each)",
        )


def _image_size(model: Mapping[str, Any]) -> Iterator[Finding]:
    size, processor = model.get("image_size"), model.get("data_preprocessor") or {}
    divisor = processor.get("pad_size_divisor", 1)
    if size and any(side % divisor for side in size):
        padded = tuple(math.ceil(side / divisor) * divisor for side in size)
        yield Finding(
            "shapes-disagree",
            ("model", "image_size"),
            f"image_size={tuple(size)} is no multiple of pad_size_divisor={divisor}: images are padded to "
            f"{padded}, and the camera maps get cells that show nothing",
            f"set image_size={padded}, or another divisor",
        )


def _windows(survey: Survey) -> Iterator[Finding]:
    head, maps = survey.model["pts_bbox_head"], survey.maps
    kinds = {read_choice(site)[0] for site in survey.sites if not site.cfg.get("window")}
    asked = [
        ((*HEAD, part, key), (head.get(part) or {}).get(key), which)
        for part, users in (("aqr_config", {"local"}), ("bias_config", set(WINDOWED_KINDS)))
        for key, which in (("window_lidar", "BEV"), ("window_camera", "camera"))
        if users & kinds
    ]
    # Layers may share one dict, and so one window.
    own = {(*site.key, "window"): site.cfg.get("window") for site in survey.sites}
    asked += [(key, window, which) for key, window in own.items() for which in maps]
    for key, window, which in asked:
        if isinstance(window, int) and (told := too_large(window, which, maps[which])):
            yield Finding("window-too-large", key, *told)


def too_large(window: int, which: str, size: tuple[int, int] | None) -> tuple[str, str] | None:
    """Return what is wrong with a window and what to do, if it does not fit into a map.

    Args:
        window: its edge, cells.
        which: name of the map.
        size: rows and columns of the map; None if they are not known: then every window fits.
    """
    if size is None or window <= min(size):
        return None
    return (
        f"a window of {window} cells does not fit into the {which} map of {size[0]} x {size[1]}: "
        "wherever it lies, part of it is cut off",
        f"take at most {min(size)}, or the global bias (use_local_bias=False), which costs less",
    )


def _grid(model: Mapping[str, Any]) -> Iterator[Finding]:
    """Find a grid whose number of cells along x or y is not the number of voxels in the range."""
    voxels, middle = model.get("pts_voxel_layer") or {}, model.get("pts_middle_encoder") or {}
    if not {"voxel_size", "point_cloud_range"} <= set(voxels) or "sparse_shape" not in middle:
        return
    limits, sizes, shape = voxels["point_cloud_range"], voxels["voxel_size"], middle["sparse_shape"]
    for axis, cells in ((0, shape[2]), (1, shape[1])):
        span = limits[axis + 3] - limits[axis]
        wanted = round(span / sizes[axis])
        if wanted != cells:
            yield _grid_finding(span, sizes[axis], wanted, cells, limits[axis])
            return


def _grid_finding(span: float, size: float, wanted: int, cells: int, low: float) -> Finding:
    """Return the finding for a grid of ``cells`` cells where the range has ``wanted`` voxels.

    ``span`` is the length of the range, ``size`` the voxel size and ``low`` the range's lower end, in metres.
    """
    key: Key = ("model", "pts_middle_encoder", "sparse_shape")
    mismatch = f"{span:g} m are {wanted} voxels of {size} m, but sparse_shape has {cells}"
    if (wanted, cells) == PUBLISHED_GRID:
        return Finding(
            "grid",
            key,
            f"{mismatch}: points beyond {low + cells * size:.1f} m get no voxel, and the {cells // 8} BEV "
            f"cells are placed as if they spanned all {span:g} m. CMT's published R50 weights were trained "
            "so",
            "keep it with those weights; from scratch, voxels of 108/1024 m would be consistent",
            note=True,
        )
    advice = f"set {wanted} there, or a voxel_size of {span / cells:g} m"
    return Finding("grid", key, f"{mismatch}: BEV keys do not lie where queries look for them", advice)
