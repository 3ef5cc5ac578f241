"""A config's train_pipeline: read as users write it, refused with a sentence, and run at full size."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.settings import CLASSES
from pipeline.data.augmentation.gt_sampling import UnifiedObjectSample
from pipeline.data.augmentation.object_database_writer import write_database
from pipeline.data.augmentation.train_pipeline import STEPS, read_steps, read_train_pipeline
from pipeline.data.boxes import points_inside
from pipeline.data.formats.file_source import FileSource
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.formats.open import open_source
from pipeline.data.formats.shard_writer import write_shards
from pipeline.data.formats.shards import ShardSource
from pipeline.data.loading.batches import training_batches
from pipeline.data.loading.class_balance import BalancedSource
from pipeline.data.loading.sampler import BatchOrder
from pipeline.data.sample import DataError
from pipeline.data.source import Reading
from pipeline.data.synthetic import generate
from pipeline.data.synthetic.sensor_rig import FULL

CONFIGS = Path(__file__).parents[4] / "experiments/configs"
LIMITS = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
IMAGE = {"H": 900, "W": 1600, "final_dim": (320, 800), "resize_lim": (0.47, 0.625),
         "bot_pct_lim": (0.0, 0.0), "rot_lim": (0.0, 0.0), "rand_flip": True}  # fmt: skip


def pipeline_of(database: Path | str) -> list[dict]:
    """CMT's train_pipeline, in mmdet3d 1.4's layout."""
    return [
        {"type": "LoadPointsFromFile", "coord_type": "LIDAR", "load_dim": 5, "use_dim": 5},
        {"type": "LoadPointsFromMultiSweeps", "sweeps_num": 10, "use_dim": [0, 1, 2, 3, 4]},
        {"type": "LoadMultiViewImageFromFiles", "num_views": 6},
        {"type": "LoadAnnotations3D", "with_bbox_3d": True, "with_label_3d": True},
        {"type": "UnifiedObjectSample", "sample_2d": True, "mixup_rate": 0.5,
         "db_sampler": {"info_path": str(database), "sample_groups": dict.fromkeys(CLASSES, 6)}},
        {"type": "ModalMask3D", "mode": "train"},
        {"type": "GlobalRotScaleTransAll", "rot_range": [-0.785, 0.785], "scale_ratio_range": [0.9, 1.1],
         "translation_std": [0.5, 0.5, 0.5]},
        {"type": "CustomRandomFlip3D", "sync_2d": False, "flip_ratio_bev_horizontal": 0.5,
         "flip_ratio_bev_vertical": 0.5},
        {"type": "PointsRangeFilter", "point_cloud_range": LIMITS},
        {"type": "ObjectRangeFilter", "point_cloud_range": LIMITS},
        {"type": "ObjectNameFilter", "classes": CLASSES},
        {"type": "PointShuffle"},
        {"type": "ResizeCropFlipImage", "data_aug_conf": IMAGE, "training": True},
        {"type": "Pack3DDetInputs", "keys": ["points", "img", "gt_bboxes_3d", "gt_labels_3d"]},
    ]  # fmt: skip


def config_of(entries: list[dict], **more) -> dict:
    frames = {"type": "NuScenesDataset", "pipeline": entries}
    return {"train_dataloader": {"dataset": {"type": "CBGSDataset", "dataset": frames}}, **more}


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """Two frames as nuScenes has them, and their objects."""
    root = tmp_path_factory.mktemp("full")
    generate(root, 3, frames_per_scene=2, scenes_per_split={"mini_train": 1}, workers=1, rig=FULL)
    write_database(FileSource(read_frames(root, "v1.0-mini", "mini_train")), root / "database")
    return root


@pytest.fixture(scope="module")
def pipeline(full):
    hooks = [{"type": "DisableObjectSampleHook", "disable_after_epoch": 15}]
    made = read_train_pipeline(config_of(pipeline_of(full / "database"), custom_hooks=hooks))
    assert made is not None
    return made


def test_what_is_read_of_a_config(pipeline):
    assert pipeline.balanced
    assert pipeline.reading == Reading(sweeps=10)
    assert pipeline.size == (320, 800)
    assert pipeline.paste_epochs == 15
    assert [type(step).__name__ for step in pipeline.steps] == list(STEPS)
    assert read_train_pipeline({"model": {}}) is None


@pytest.mark.parametrize("kind", ["ModalMask3D", "CustomRandomFlip3D"])
def test_an_evaluation_whose_pipeline_changes_frames_is_refused(kind):
    loader = {"dataset": {"pipeline": [{"type": "LoadMultiViewImageFromFiles"}, {"type": kind}]}}
    with pytest.raises(
        DataError, match=rf"val_dataloader.dataset.pipeline\[1\], {kind}: remove it; frames are"
    ):
        read_train_pipeline({**config_of([{"type": "PointShuffle"}]), "val_dataloader": loader})


def test_nothing_is_pasted_in_the_last_epochs(full):
    hooks = [{"type": "mmdet3d.DisableObjectSampleHook", "disable_after_epoch": 15}]
    entries = pipeline_of(full / "database")[3:5]
    pasting = read_train_pipeline(config_of(entries, custom_hooks=hooks))
    frame = FileSource(read_frames(full, "v1.0-mini", "mini_train"))[0]
    early, late = (pasting.at(epoch)(frame, np.random.default_rng(1)) for epoch in (14, 15))
    assert len(early.boxes) > len(frame.boxes)
    np.testing.assert_array_equal(late.labels, frame.labels)
    assert late.images is frame.images


def test_a_full_size_sample(pipeline, full):
    frame = FileSource(read_frames(full, "v1.0-mini", "mini_train"), pipeline.reading)[1]
    assert len(np.unique(frame.points[:, 4])) == 11  # the key frame and ten sweeps
    made = pipeline.at(0)(frame, np.random.default_rng(0))
    assert made.images.shape == (6, 320, 800, 3)
    assert made.images.dtype == np.uint8
    assert (np.abs(made.points[:, :2]) < 54).all()
    assert made.points.dtype == np.float32
    held = [len(points_inside(made.points, box)) for box in made.boxes]
    assert np.mean(np.array(held) > 0) > 0.9  # a few stand half outside the range


@pytest.mark.parametrize("workers", [1, 2])
def test_resumed_equals_unbroken_with_any_number_of_loader_processes(pipeline, full, workers):
    source = BalancedSource(open_source(full, "v1.0-mini", "mini_train", pipeline.reading), seed=4)
    order = BatchOrder(len(source), 1, 0, 1, seed=4)
    whole = list(training_batches(source, order, pipeline, 0, 3, 0))
    later = list(training_batches(source, order, pipeline, 1, 3, workers))
    for (one,), (other,) in zip(whole[1:], later, strict=True):
        for field in ("images", "points", "boxes", "labels", "lidar2img"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    assert not np.array_equal(whole[0][0].boxes, whole[1][0].boxes)


def test_shards_give_what_files_give_with_sweeps(full, tmp_path):
    write_shards(full, "v1.0-mini", "mini_train", tmp_path)
    records = read_frames(full, "v1.0-mini", "mini_train")
    for reading in (Reading(), Reading(sweeps=3)):
        files, shards = FileSource(records, reading), ShardSource(tmp_path, "mini_train", reading)
        np.testing.assert_array_equal(shards[1].points, files[1].points)
        assert list(shards.labels) == files.labels
    with pytest.raises(DataError, match="remove_close=True cannot be met"):
        ShardSource(tmp_path, "mini_train", Reading(remove_close=True))


def test_close_points_of_sweeps_are_dropped_on_demand(full):
    record = read_frames(full, "v1.0-mini", "mini_train")[1]
    path = record.sweeps[0].path
    kept = path.read_bytes()
    path.write_bytes(kept + np.array([0.5, -0.9, 0, 1, 3], "<f4").tobytes())
    try:
        sizes = [len(FileSource([record], Reading(remove_close=close))[0].points) for close in (False, True)]
    finally:
        path.write_bytes(kept)
    assert sizes[0] == sizes[1] + 1


def entry(**keys) -> list[dict]:
    return [keys]


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([], "has no pipeline"),
        (entry(type="RandomFlip3D"), r"pipeline\[0\], RandomFlip3D: .* use CustomRandomFlip3D"),
        (entry(type="NormalizeMultiviewImage"), "mean and std are in model.data_preprocessor"),
        (entry(type="GridMask"), "unknown entry; expected one of LoadPointsFromFile"),
        (entry(type="PointShuffle", seed=1), "PointShuffle: got an unexpected keyword argument 'seed'"),
        (entry(type="PointsRangeFilter"), "missing 1 required positional argument: 'point_cloud_range'"),
        (entry(type="LoadPointsFromFile", use_dim=4), "use_dim=4; our sources support 5 or"),
        (entry(type="LoadPointsFromMultiSweeps", pad_empty_sweeps=True), "pad_empty_sweeps=True; our"),
        (entry(type="LoadMultiViewImageFromFiles", views=6), "unknown key 'views'"),
    ],
)  # fmt: skip
def test_refusals(entries, sentence):
    with pytest.raises(DataError, match=sentence):
        read_steps(entries, "train_dataloader")


def test_an_unknown_wrapper_is_refused():
    config = {
        "train_dataloader": {"dataset": {"type": "RepeatDataset", "dataset": {"pipeline": pipeline_of("x")}}}
    }
    with pytest.raises(DataError, match="unknown wrapper RepeatDataset"):
        read_train_pipeline(config)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cmt_voxel0100_r50_800x320_cbgs.py", (320, 800)),
        ("cmt_voxel0075_vov_1600x640_cbgs.py", (640, 1600)),
        ("cmt_aqr_voxel0100_r50_800x320_cbgs.py", (320, 800)),
        ("cmt_aqr_voxel0075_vov_1600x640_cbgs.py", (640, 1600)),
        ("cmt_aqr_pillar_mini_runner.py", (96, 240)),
    ],
)
def test_the_shipped_configs_are_read(name, size):
    from pipeline.detector.build import load_config

    made = read_train_pipeline(load_config(CONFIGS / name).to_dict())
    assert made.size == size
    assert made.reading == made.val_reading == Reading()
    if "cbgs" in name:
        assert made.balanced
        assert made.paste_epochs == 15
        (paste,) = (step for step in made.steps if isinstance(step, UnifiedObjectSample))
        groups = dict(paste.db_sampler["sample_groups"])
        assert json.dumps(groups) == json.dumps(
            dict(zip(CLASSES, (2, 3, 7, 4, 6, 2, 6, 6, 2, 2), strict=True))
        )
        assert [type(step).__name__ for step in made.steps] == list(STEPS)
