"""Scene view: what is drawn is what the model said about that frame."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.config.plan import Plan
from pipeline.data.augmentation.transforms import resize_crop
from pipeline.data.formats.open import open_source
from pipeline.detector.build import build_model
from pipeline.evaluation.scene_figure import capture_scene, save_scene_figure

WINDOW = Plan.of(
    {
        "aqr.0.cross": "local/sdpa_math",
        "decoder.*.self": "none/sdpa_math",
        "decoder.*.cross": "window/sdpa_math",
    }
)
NONE = Plan.of({"aqr.0.cross": "local/sdpa_math", "decoder.*": "none/sdpa_math"})


@pytest.fixture
def model(trial):
    torch.manual_seed(0)
    return build_model(trial().config, trial().overrides, WINDOW)


@pytest.fixture(scope="module")
def frame(small_dataset: Path):
    return open_source(small_dataset, "v1.0-mini", "mini_val")[0]


def test_windows_and_maps_are_the_models(model, frame):
    model.train()
    view = capture_scene(model, frame)
    assert model.training  # left as it was found
    rows, cols = view.maps[0].shape
    assert (view.rects[..., 0, 1] < rows).all()
    assert (view.rects[..., 0, 3] < cols).all()
    heights = view.rects[:, 0, 1] - view.rects[:, 0, 0] + 1
    assert heights.max() == model.pts_bbox_head.bias_generator.window_sizes[0]
    assert sorted(view.surest) == list(range(24))  # every query once
    assert all(np.abs(part).max() <= 1 + 1e-6 for part in view.maps)
    seen = resize_crop(frame, model.image_size).images
    assert np.array_equal(view.images[..., ::-1], seen)


def test_the_windows_drawn_are_those_of_the_plan(model, frame):
    model.apply_plan(Plan.of({**dict(WINDOW.choices), "decoder.*.cross": "window:9/sdpa_math"}))
    rects = capture_scene(model, frame).rects
    assert (rects[:, 0, 1] - rects[:, 0, 0] + 1).max() == 9


def test_corners_enclose_what_the_box_says(model, frame):
    view = capture_scene(model, frame)
    low, high = view.area[:2], view.area[2:]
    assert np.all(low < high)
    boxes = frame.boxes
    assert np.allclose(view.boxes.mean(axis=1), boxes[:, :2], atol=1e-3)
    length = np.linalg.norm(view.boxes[:, 0] - view.boxes[:, 3], axis=1)
    assert np.allclose(length, boxes[:, 3], atol=1e-3)
    along = view.boxes[:, 0] - view.boxes[:, 3]
    yaw = np.arctan2(along[:, 1], along[:, 0])
    assert np.allclose(np.cos(yaw - boxes[:, 6]), 1, atol=1e-4)


def test_the_picture_is_a_phones_column_wide_and_repeats(model, frame, tmp_path):
    view = capture_scene(model, frame)
    for name in ("a.png", "b.png"):
        save_scene_figure(view, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert cv2.imread(str(tmp_path / "a.png")).shape[1] == 735


def test_without_a_bias_there_is_nothing_to_see(model, frame):
    model.apply_plan(NONE)
    assert capture_scene(model, frame) is None
