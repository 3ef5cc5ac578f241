"""Rules about data pipelines: their steps, the order of the steps, and whether they fit the model."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.lint.finding import Finding
from operators.grid import CAMERA
from pipeline.config.provenance import Key
from pipeline.data.augmentation.train_pipeline import (
    CHANGING,
    LOADERS,
    NOT_CHANGED,
    REPLACEMENTS,
    STEPS,
    read_steps,
)
from pipeline.data.sample import DataError
from pipeline.detector.inspection.sites import HEAD, sensors_of
from pipeline.detector.inspection.survey import Survey

LOADING = (*LOADERS, "LoadAnnotations3D")
MOVING = ("GlobalRotScaleTransAll", "CustomRandomFlip3D")
RANGES = ("PointsRangeFilter", "ObjectRangeFilter")
PACK = "Pack3DDetInputs"
KNOWN = (*LOADERS, *STEPS, PACK)

AFTER: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (tuple(KNOWN), (PACK,), "nothing of a packed sample is left for it to work on"),
    (
        LOADING,
        tuple(name for name in STEPS if name != "LoadAnnotations3D"),
        "it would undo what was done before",
    ),
    (
        ("UnifiedObjectSample",),
        ("ResizeCropFlipImage",),
        "it would paste pictures of full size into small images",
    ),
    (("UnifiedObjectSample",), MOVING, "pasted objects would stay where they are while the scene has moved"),
    (("UnifiedObjectSample",), RANGES, "objects beyond the range would come back in"),
    (MOVING, RANGES, "what it moves out of the range would stay in"),
)
"""(steps, steps that they must not come after, reason)."""


def check_pipelines(survey: Survey) -> Iterator[Finding]:
    """Yield findings about the pipelines of a config: errors within them, and conflicts with the model."""
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        dataset, at = innermost(survey.sections.get(loader), (loader,))
        entries = dataset.get("pipeline")
        if not isinstance(entries, Sequence) or not entries:
            continue
        place: Key = (*at, "pipeline")
        of_entries = [_entry(entry, (*place, i)) for i, entry in enumerate(entries)]
        for finding in of_entries:
            if finding is not None:
                yield finding
        yield from _order(entries, place)
        if loader == "train_dataloader":
            yield from _complete(entries, place, CAMERA in sensors_of(survey.model["pts_bbox_head"]))
        else:
            yield from _evaluation(entries, place)
        for i, entry in enumerate(entries):
            if of_entries[i] is None:
                yield from _against_model(entry, (*place, i), survey.model)
        yield from _dataset(dataset, at, survey.model)


def innermost(loader: Any, at: Key) -> tuple[Mapping[str, Any], Key]:
    """Return the dataset inside all wrappers of a dataloader, and the dataset's key.

    Without a dataset, these are the dataloader and its key. A dataloader that is no dict gives an empty dict.
    """
    node = loader if isinstance(loader, Mapping) else {}
    while isinstance(node.get("dataset"), Mapping):
        node, at = node["dataset"], (*at, "dataset")
    return node, at


def _entry(entry: Any, at: Key) -> Finding | None:
    """Return a finding if the entry's type is unknown, or its step refuses a key or value of it."""
    kind = entry.get("type") if isinstance(entry, Mapping) else None
    if kind not in KNOWN:
        advice = REPLACEMENTS.get(str(kind), f"take one of {', '.join(KNOWN)}")
        key = (*at, "type") if isinstance(entry, Mapping) and "type" in entry else at
        return Finding("unknown-transform", key, f"no step is called {kind!r}", advice)
    try:
        read_steps([entry], "")
    except DataError as error:
        message = str(error).partition(f"{kind}: ")[2] or str(error)
        unknown_key = re.search(r"keyword argument '(\w+)'|the key '(\w+)'", message)
        if unknown_key:
            unread = unknown_key.group(1) or unknown_key.group(2)
            sentence = f"{kind} does not read {unread!r}: it would be refused"
            return Finding("unused-key", (*at, unread), sentence, "remove it or correct its name")
        refused = next((str(name) for name in entry if name != "type" and str(name) in message), "type")
        return Finding("refused-value", (*at, refused), f"{kind}: {message}", "correct it")
    return None


def _order(entries: Sequence[Any], place: Key) -> Iterator[Finding]:
    kinds = [str(entry.get("type")) if isinstance(entry, Mapping) else "" for entry in entries]
    for i, kind in enumerate(kinds):
        for steps, forbidden, why in AFTER:
            early = next((name for name in kinds[:i] if name in forbidden), None)
            if kind in steps and early is not None:
                advice = f"put it before {early}"
                yield Finding("misplaced", (*place, i, "type"), f"{kind} comes after {early}: {why}", advice)
                break


def _complete(entries: Sequence[Any], place: Key, cameras: bool) -> Iterator[Finding]:
    """Find steps that training needs and the pipeline does not have; ``cameras``: the model reads images."""
    kinds = [entry.get("type") for entry in entries if isinstance(entry, Mapping)]
    needs = {
        "LoadAnnotations3D": "training needs boxes",
        "ResizeCropFlipImage": "images would keep their native size",
    }
    for kind, why in needs.items():
        if kind not in kinds and (cameras or kind != "ResizeCropFlipImage"):
            yield Finding("incomplete", place, f"the pipeline has no {kind}: {why}", f"add {kind}")


def _evaluation(entries: Sequence[Any], place: Key) -> Iterator[Finding]:
    for i, entry in enumerate(entries):
        kind = entry.get("type") if isinstance(entry, Mapping) else None
        random_crop = kind == "ResizeCropFlipImage" and entry.get("training", True)
        if kind in CHANGING:
            sentence = (
                f"{kind} changes frames, and this pipeline is for evaluation: training would be refused"
            )
            yield Finding("misplaced", (*place, i, "type"), sentence, f"remove it; {NOT_CHANGED}")
        elif random_crop:
            key = (*place, i, "training" if "training" in entry else "type")
            sentence = f"{kind} changes frames at random, and this pipeline is for evaluation"
            yield Finding("misplaced", key, sentence, "set training=False")


def _against_model(entry: Mapping[str, Any], at: Key, model: Mapping[str, Any]) -> Iterator[Finding]:
    """Find ranges, image sizes and classes of one entry that differ from the model's."""
    kind, limits = entry["type"], model_range(model)
    if kind in RANGES and limits is not None and list(entry["point_cloud_range"]) != limits:
        yield Finding(
            "pipeline-model",
            (*at, "point_cloud_range"),
            f"{kind} keeps {list(entry['point_cloud_range'])}, the model detects in {limits}",
            "make them equal",
        )
    if kind == "ResizeCropFlipImage" and model.get("image_size"):
        made, wanted = tuple(entry["data_aug_conf"]["final_dim"]), tuple(model["image_size"])
        if made != wanted:
            sentence = f"images come out with (height, width) {made}, model.image_size is {wanted}"
            key = (*at, "data_aug_conf", "final_dim")
            yield Finding("pipeline-model", key, f"{sentence}: training would be refused", "make them equal")
    wanted_classes = head_classes(model)
    named = {"ObjectNameFilter": entry.get("classes"), "UnifiedObjectSample": _sampled(entry)}.get(kind)
    if wanted_classes and named and list(named) != wanted_classes:
        key = (*at, "classes") if kind == "ObjectNameFilter" else (*at, "db_sampler", "classes")
        yield _classes(key, named, wanted_classes)


def _sampled(entry: Mapping[str, Any]) -> Any:
    return (entry.get("db_sampler") or {}).get("classes")


def _dataset(dataset: Mapping[str, Any], at: Key, model: Mapping[str, Any]) -> Iterator[Finding]:
    """Find classes of the dataset and columns of points that differ from the model's.

    CBGS balances the dataset's classes. A label is an index into them.
    """
    named, wanted = (dataset.get("metainfo") or {}).get("classes"), head_classes(model)
    if named and wanted and list(named) != wanted:
        yield _classes((*at, "metainfo", "classes"), named, wanted)
    for i, entry in enumerate(dataset["pipeline"]):
        columns = entry.get("use_dim") if isinstance(entry, Mapping) else None
        read = (model.get("pts_voxel_layer") or {}).get("num_point_features")
        count = len(columns) if isinstance(columns, Sequence) else columns
        if read is not None and count is not None and count != read:
            key = (*at, "pipeline", i, "use_dim")
            sentence = f"points have {count} columns, pts_voxel_layer.num_point_features is {read}"
            yield Finding("pipeline-model", key, sentence, "make them equal")


def _classes(key: Key, named: Sequence[str], wanted: Sequence[str]) -> Finding:
    unshared = [name for name in named if name not in wanted]
    unshared = unshared or [name for name in wanted if name not in named]
    how = (
        f"only one of the two has {', '.join(unshared)}"
        if unshared
        else "the order differs, and a label is a position in it"
    )
    return Finding("pipeline-model", key, f"classes are not those of the head: {how}", "make them equal")


def model_range(model: Mapping[str, Any]) -> list[float] | None:
    """Return the range in metres in which the head detects, (x, y, z) low and high; None if it has none."""
    limits = (model["pts_bbox_head"].get("bbox_coder") or {}).get("pc_range")
    return None if limits is None else [float(value) for value in limits]


def head_classes(model: Mapping[str, Any]) -> list[str]:
    """Return the names of the head's classes; empty if the config has none."""
    tasks = model["pts_bbox_head"].get("tasks") or [{}]
    return list(tasks[0].get("class_names") or ())


def check_ranges(survey: Survey) -> Iterator[Finding]:
    """Find voxels or pillars that cover another range than the head detects in."""
    wanted = model_range(survey.model)
    for part in ("pts_voxel_layer", "pts_branch"):
        limits = (survey.model.get(part) or {}).get("point_cloud_range")
        if wanted is not None and limits is not None and [float(v) for v in limits] != wanted:
            name = ".".join(map(str, (*HEAD[1:], "bbox_coder", "pc_range")))
            yield Finding(
                "pipeline-model",
                ("model", part, "point_cloud_range"),
                f"the LiDAR branch covers {list(limits)}, {name} is {wanted}: BEV keys do not lie where "
                "queries look for them",
                "make them equal",
            )
