"""Pipelines and datasets of a config of mmcv 1.x as today's: same frames, same augmentation."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.lint.migration.lost import Ledger
from pipeline.config.provenance import Key
from pipeline.data.augmentation.train_pipeline import CHANGING, LOADERS, NOT_CHANGED, STEPS
from pipeline.data.sample import CAMERAS

MOVED = ("NormalizeMultiviewImage", "PadMultiViewImage")
"""Steps whose work ``model.data_preprocessor`` does."""

RENAMED: Mapping[str, str] = {
    "ObjectSample": "UnifiedObjectSample",
    "GlobalRotScaleTrans": "GlobalRotScaleTransAll",
    "RandomFlip3D": "CustomRandomFlip3D",
}
"""Step -> one that does the same, and moves the cameras too."""

READ_KEYS: Mapping[str, tuple[str, ...]] = {
    "LoadAnnotations3D": ("with_bbox_3d", "with_label_3d"),
    "GlobalRotScaleTransAll": ("rot_range", "scale_ratio_range", "translation_std"),
    "CustomRandomFlip3D": ("flip_ratio_bev_horizontal", "flip_ratio_bev_vertical", "sync_2d"),
    "ObjectNameFilter": ("classes",),
    "ModalMask3D": ("mode", "mask_modal"),
    **{name: ("sweeps_num", "remove_close", *keys) for name, keys in LOADERS.items()},
}
"""Step -> the keys that it reads; others of mmdet3d 0.x are harmless and left out."""

PACK = "Pack3DDetInputs"

UNREAD_BY_DATASET = dict.fromkeys(("with_velocity", "eval_version", "num_views"), "nuScenes has them so")


def migrate_pipeline(old: Sequence[Mapping[str, Any]], at: Key, ledger: Ledger) -> list[dict[str, Any]]:
    """Return the steps of a pipeline.

    Args:
        old: the steps of mmdet3d 0.x and CMT.
        at: the pipeline's place.
        ledger: gets the steps that have no counterpart.
    """
    steps: list[dict[str, Any]] = []
    for place, given in enumerate(old):
        entry, here = copy.deepcopy(dict(given)), (*at, place)
        if entry.get("type") == "MultiScaleFlipAug3D":
            if entry.get("flip") or isinstance(entry.get("img_scale"), list):
                ledger.lose(
                    here, "MultiScaleFlipAug3D tests one size without mirroring: there is no TTA", True
                )
            steps += migrate_pipeline(entry.get("transforms", ()), (*here, "transforms"), ledger)
        else:
            steps += _steps(entry, here, ledger)
    return steps


def _steps(entry: dict[str, Any], at: Key, ledger: Ledger) -> list[dict[str, Any]]:
    """Return what one step becomes."""
    kind = str(entry.get("type"))
    if kind == "Collect3D":
        return [{"type": PACK, "keys": list(entry.get("keys", ()))}]
    if kind == "GlobalRotScaleTransImage":
        return _of_images(entry, at, ledger)
    if kind in MOVED or kind == "DefaultFormatBundle3D" or _does_nothing(entry):
        return []
    name = RENAMED.get(kind, kind)
    if name in CHANGING and at[1] != "train":
        ledger.lose(at, f"the step {kind} of evaluation is left out: {NOT_CHANGED}", True)
        return []
    if name in (*STEPS, *LOADERS):
        return [_step(entry, name, kind)]
    ledger.lose(at, f"the step {kind} is left out: nothing here does it", True)
    return []


def _does_nothing(entry: Mapping[str, Any]) -> bool:
    """Whether a step moves nothing: mmdet3d's test pipelines have such."""
    kind = entry.get("type")
    if kind == "RandomFlip3D":
        return not any(value for key, value in entry.items() if key.startswith("flip_ratio"))
    ranges = (entry.get("rot_range"), entry.get("scale_ratio_range"), entry.get("translation_std"))
    return kind == "GlobalRotScaleTrans" and [list(x or ()) for x in ranges] == [[0, 0], [1, 1], [0, 0, 0]]


def _step(entry: dict[str, Any], name: str, old: str) -> dict[str, Any]:
    kept = {key: value for key, value in entry.items() if key in READ_KEYS.get(name, entry)}
    if name == "CustomRandomFlip3D":
        kept["sync_2d"] = False  # images are mirrored by ResizeCropFlipImage alone
    if old == "ObjectSample":
        kept["sample_2d"] = bool(entry.get("sample_2d", False))
    return {"type": name, **{key: value for key, value in kept.items() if key != "type"}}


def _of_images(entry: Mapping[str, Any], at: Key, ledger: Ledger) -> list[dict[str, Any]]:
    """Return the steps of CMT's augmentation for cameras alone, which does not shift."""
    if not entry.get("reverse_angle", False):
        ledger.lose(
            (*at, "type"),
            "reverse_angle=False turns boxes and cameras apart in CMT's code; here they turn alike",
            True,
        )
    if any(entry.get("translation_std", ())):
        ledger.lose((*at, "translation_std"), "translation_std is left out: CMT's code ignores it here")
    scene = {
        "type": "GlobalRotScaleTransAll",
        "rot_range": list(entry.get("rot_range", (-0.3925, 0.3925))),
        "scale_ratio_range": list(entry.get("scale_ratio_range", (0.95, 1.05))),
        "translation_std": [0.0, 0.0, 0.0],
    }
    flips = entry.get("flip_dy_ratio", 0.0), entry.get("flip_dx_ratio", 0.0)
    if not any(flips):
        return [scene]
    names = ("flip_ratio_bev_horizontal", "flip_ratio_bev_vertical")
    return [scene, {"type": "CustomRandomFlip3D", "sync_2d": False, **dict(zip(names, flips, strict=True))}]


def preprocessor(pipeline: Sequence[Mapping[str, Any]], at: Key, ledger: Ledger) -> dict[str, Any]:
    """Return ``model.data_preprocessor``: what the old pipeline's normalising and padding did."""
    made: dict[str, Any] = {"type": "Det3DDataPreprocessor"}
    for place, entry in enumerate(pipeline):
        if entry.get("type") == "NormalizeMultiviewImage":
            made |= {"mean": list(entry["mean"]), "std": list(entry["std"])}
            made["bgr_to_rgb"] = bool(entry.get("to_rgb", True))
        elif entry.get("type") == "PadMultiViewImage":
            if entry.get("size_divisor") is None:
                ledger.lose(
                    (*at, place), "PadMultiViewImage to a fixed size is left out: images have one size"
                )
            else:
                made["pad_size_divisor"] = int(entry["size_divisor"])
    return made


def image_size(pipeline: Sequence[Mapping[str, Any]]) -> tuple[int, int] | None:
    """Return (height, width) in pixels of the images that a pipeline makes; None if it cuts none."""
    sizes = [e["data_aug_conf"]["final_dim"] for e in pipeline if e.get("type") == "ResizeCropFlipImage"]
    return (int(sizes[-1][0]), int(sizes[-1][1])) if sizes else None


def innermost(dataset: Mapping[str, Any], at: Key) -> tuple[Mapping[str, Any], Key]:
    """Return the dataset inside all wrappers, and its place."""
    while isinstance(dataset.get("dataset"), Mapping):
        dataset, at = dataset["dataset"], (*at, "dataset")
    return dataset, at


def migrate_dataset(old: Mapping[str, Any], at: Key, ledger: Ledger) -> dict[str, Any]:
    """Return a dataset, with its wrappers of class balance."""
    if isinstance(old.get("dataset"), Mapping):
        inner = migrate_dataset(old["dataset"], (*at, "dataset"), ledger)
        if old.get("type") == "CBGSDataset":
            return {"type": "CBGSDataset", "dataset": inner}
        ledger.lose(at, f"the wrapper {old.get('type')} is left out: lengthen max_epochs instead", True)
        return inner
    given = dict(old)
    if given.pop("load_interval", 1) != 1:
        ledger.lose((*at, "load_interval"), "load_interval is left out: every frame is read", True)
    ledger.pop(given, at, UNREAD_BY_DATASET)
    root = str(given.get("data_root") or "data/nuscenes/")
    modality = given.get("modality") or {}
    return {
        "type": "NuScenesDataset",
        "data_root": root,
        "ann_file": relative(str(given.get("ann_file", "")), root),
        "metainfo": {"classes": list(given.get("classes") or ())},
        "modality": {key: bool(modality.get(key, True)) for key in ("use_lidar", "use_camera")},
        "data_prefix": {
            "pts": "samples/LIDAR_TOP",
            "sweeps": "sweeps/LIDAR_TOP",
            **{camera: f"samples/{camera}" for camera in CAMERAS},
        },
        "box_type_3d": given.get("box_type_3d", "LiDAR"),
        "pipeline": migrate_pipeline(given.get("pipeline") or (), (*at, "pipeline"), ledger),
        "test_mode": bool(given.get("test_mode", False)),
        "use_valid_flag": bool(given.get("use_valid_flag", False)),
    }


def relative(path: str, root: str) -> str:
    """Return a path of mmdet3d 0.x, which begins with the data's folder, relative to that folder."""
    parts = [part for part in path.split("/") if part]
    above = [part for part in root.split("/") if part]
    return "/".join(parts[len(above) :]) if parts[: len(above)] == above else path
