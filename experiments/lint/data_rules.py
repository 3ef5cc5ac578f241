"""What is done to a frame, in which order, and whether the model takes it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.lint.finding import Finding
from pipeline.config.provenance import Key
from pipeline.data.augmentation.train_pipeline import LOADERS, REPLACEMENTS, STEPS, read_steps
from pipeline.data.sample import DataError
from pipeline.detector.inspection.sites import HEAD
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
"""(what, must not come after, why)."""

DRAWING = ("UnifiedObjectSample", *MOVING)
"""Steps that change a frame at random; a frame to evaluate on must stay as it is."""


def check_pipelines(survey: Survey) -> Iterator[Finding]:
    """Judge the pipelines of a config, by themselves and against its model."""
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        dataset, at = innermost(survey.sections.get(loader), (loader,))
        entries = dataset.get("pipeline")
        if not isinstance(entries, Sequence) or not entries:
            continue
        place: Key = (*at, "pipeline")
        alone = [_entry(entry, (*place, i)) for i, entry in enumerate(entries)]
        for finding in alone:
            if finding is not None:
                yield finding
        yield from _order(entries, place)
        if loader == "train_dataloader":
            yield from _complete(entries, place)
        else:
            yield from _evaluation(entries, place)
        for i, entry in enumerate(entries):
            if alone[i] is None:
                yield from _against_model(entry, (*place, i), survey.model)
        yield from _dataset(dataset, at, survey.model)


def innermost(loader: Any, at: Key) -> tuple[Mapping[str, Any], Key]:
    """Return the dataset inside all wrappers of a dataloader, and its key; empty if there is none."""
    node = loader if isinstance(loader, Mapping) else {}
    while isinstance(node.get("dataset"), Mapping):
        node, at = node["dataset"], (*at, "dataset")
    return node, at


def _entry(entry: Any, at: Key) -> Finding | None:
    """An entry that nobody reads, or whose keys or values its step refuses."""
    kind = entry.get("type") if isinstance(entry, Mapping) else None
    if kind not in KNOWN:
        advice = REPLACEMENTS.get(str(kind), f"take one of {', '.join(KNOWN)}")
        key = (*at, "type") if isinstance(entry, Mapping) and "type" in entry else at
        return Finding("unknown-transform", key, f"no step is called {kind!r}", advice)
    try:
        read_steps([entry], "")
    except DataError as error:
        said = str(error).partition(f"{kind}: ")[2] or str(error)
        named = re.search(r"keyword argument '(\w+)'|the key '(\w+)'", said)
        if named:
            unread = named.group(1) or named.group(2)
            sentence = f"{kind} does not read {unread!r}: it would be refused"
            return Finding("unused-key", (*at, unread), sentence, "remove it or correct its name")
        refused = next((str(name) for name in entry if name != "type" and str(name) in said), "type")
        return Finding("refused-value", (*at, refused), f"{kind}: {said}", "correct it")
    return None


def _order(entries: Sequence[Any], place: Key) -> Iterator[Finding]:
    kinds = [str(entry.get("type")) if isinstance(entry, Mapping) else "" for entry in entries]
    for i, kind in enumerate(kinds):
        for what, before, why in AFTER:
            early = next((name for name in kinds[:i] if name in before), None)
            if kind in what and early is not None:
                advice = f"put it before {early}"
                yield Finding("misplaced", (*place, i, "type"), f"{kind} comes after {early}: {why}", advice)
                break


def _complete(entries: Sequence[Any], place: Key) -> Iterator[Finding]:
    """What training cannot do without."""
    kinds = [entry.get("type") for entry in entries if isinstance(entry, Mapping)]
    needs = {
        "LoadAnnotations3D": "training needs boxes",
        "ResizeCropFlipImage": "images would keep their native size",
    }
    for kind, why in needs.items():
        if kind not in kinds:
            yield Finding("incomplete", place, f"the pipeline has no {kind}: {why}", f"add {kind}")


def _evaluation(entries: Sequence[Any], place: Key) -> Iterator[Finding]:
    for i, entry in enumerate(entries):
        kind = entry.get("type") if isinstance(entry, Mapping) else None
        drawn = kind == "ResizeCropFlipImage" and entry.get("training", True)
        if kind in DRAWING or drawn or (kind == "ModalMask3D" and entry.get("mode") == "train"):
            key = (*place, i, "training" if drawn and "training" in entry else "type")
            advice = "set training=False" if drawn else "remove it"
            yield Finding("misplaced", key, f"{kind} changes frames to evaluate on at random", advice)


def _against_model(entry: Mapping[str, Any], at: Key, model: Mapping[str, Any]) -> Iterator[Finding]:
    """An entry whose numbers are not the model's."""
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
    """Classes of the dataset, which CBGS balances and a label counts through."""
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
    odd = [name for name in named if name not in wanted] or [name for name in wanted if name not in named]
    what = f"{', '.join(odd)} on one side alone" if odd else "the order differs, and labels count through it"
    return Finding("pipeline-model", key, f"classes are not those of the head: {what}", "make them equal")


def model_range(model: Mapping[str, Any]) -> list[float] | None:
    """Return the range in which the head detects."""
    limits = (model["pts_bbox_head"].get("bbox_coder") or {}).get("pc_range")
    return None if limits is None else [float(value) for value in limits]


def head_classes(model: Mapping[str, Any]) -> list[str]:
    """Return the names of the head's classes, empty if it does not say."""
    tasks = model["pts_bbox_head"].get("tasks") or [{}]
    return list(tasks[0].get("class_names") or ())


def check_ranges(survey: Survey) -> Iterator[Finding]:
    """The range that is made into voxels or pillars, against the one in which the head detects."""
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
