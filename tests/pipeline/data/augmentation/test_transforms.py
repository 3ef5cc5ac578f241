"""Transforms obey one law: what a point or box corner projects to moves with the pixels."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from pipeline.data.augmentation.transforms import (
    Augmentation,
    augment,
    box_corners,
    filter_range,
    mask_modality,
    project,
    resize_crop,
    transform_scene,
)
from pipeline.data.sample import Sample

NATIVE = (225, 400)  # height, width of generated data
MODEL = (96, 240)  # height, width of the mini model


def camera(height: int, width: int, turn: float) -> np.ndarray:
    """A pinhole camera that looks along (sin turn, cos turn, 0) of the LiDAR frame."""
    forward = np.array([np.sin(turn), np.cos(turn), 0])
    right = np.array([np.cos(turn), -np.sin(turn), 0])
    extrinsic = np.eye(4)
    extrinsic[:3, :3] = [right, [0, 0, -1], forward]
    extrinsic[:3, 3] = [0.1, 0.3, -0.4]
    intrinsic = np.eye(4)
    intrinsic[0, 0] = intrinsic[1, 1] = 0.8 * width
    intrinsic[0, 2], intrinsic[1, 2] = width / 2, height / 2
    return intrinsic @ extrinsic


@pytest.fixture
def sample() -> Sample:
    rng = np.random.default_rng(7)
    boxes = np.zeros((12, 9), np.float32)
    boxes[:, :2] = rng.uniform(-40, 40, (12, 2))
    boxes[:, 2] = rng.uniform(-1, 1, 12)
    boxes[:, 3:6] = rng.uniform(0.5, 5, (12, 3))
    boxes[:, 6] = rng.uniform(-np.pi, np.pi, 12)
    boxes[:, 7:9] = rng.normal(0, 3, (12, 2))
    boxes[3, 7:9] = np.nan
    points = rng.uniform(-60, 60, (500, 5)).astype(np.float32)
    return Sample(
        token="t",
        scene="s",
        images=rng.integers(0, 255, (6, *NATIVE, 3), dtype=np.uint8),
        points=points,
        lidar2img=np.stack([camera(*NATIVE, turn) for turn in np.arange(6) * np.pi / 3]),
        boxes=boxes,
        labels=np.arange(12, dtype=np.int64) % 10,
        lidar2ego=np.eye(4),
        ego2global=np.eye(4),
    )


def spot(sample: Sample, view: int, u: float, v: float) -> Sample:
    """Paint a soft bright spot centred at (u, v) into one black image."""
    images = np.zeros_like(sample.images)
    rows, columns = np.mgrid[: NATIVE[0], : NATIVE[1]] + 0.5  # centres: pixel i covers [i, i + 1)
    glow = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * 6.0**2))
    images[view] = np.rint(glow)[..., None]
    return replace(sample, images=images)


def centroid(image: np.ndarray) -> tuple[float, float]:
    weight = image[..., 0].astype(float)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return float((weight * columns).sum() / weight.sum()), float((weight * rows).sum() / weight.sum())


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("zoom", [1.0, 1.2])
def test_pixels_follow_the_projection(sample: Sample, mirror: bool, zoom: float) -> None:
    point = np.array([2.0, 14.0, -0.8])
    u, v, _ = project(point, sample.lidar2img)[0]
    moved = resize_crop(spot(sample, 0, u, v), MODEL, zoom, place=0.3, mirror=mirror)
    expected = project(point, moved.lidar2img)[0, :2]
    # a 6-pixel spot quantised to 8 bits is located to a few hundredths of a pixel
    np.testing.assert_allclose(centroid(moved.images[0]), expected, atol=0.05)


def test_resize_fills_the_model_image_and_cuts_the_sky(sample: Sample) -> None:
    images = sample.images.copy()
    images[:, :50] = 0  # sky
    made = resize_crop(replace(sample, images=images), MODEL)
    assert made.images.shape == (6, *MODEL, 3)
    assert made.images.min() >= 0
    assert (made.images[:, -1] > 0).any()
    # 225 rows become 135 (factor 0.6); the lowest 96 stay, so row 50 lies at 30 - 39 < 0
    assert (made.images.reshape(6, 96, -1) > 0).any(axis=2).all()


def test_scene_motion_keeps_every_projected_corner(sample: Sample) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        moved = augment(sample, rng, MODEL, Augmentation(zoom=(1.0, 1.0), mirror=0.0))
        still = resize_crop(sample, MODEL, 1.0, 0.5)  # at zoom 1 nothing is left to cut at the sides
        before = project(box_corners(sample.boxes[:, :7]), still.lidar2img)
        after = project(box_corners(moved.boxes[:, :7]), moved.lidar2img)
        # a mirrored scene swaps which corner is which, so compare them as sets: extremes per box and view
        seen = before[..., 2].min(axis=2) > 1.0
        for extreme in (np.min, np.max):
            np.testing.assert_allclose(
                extreme(after[..., :2], axis=2)[seen],
                extreme(before[..., :2], axis=2)[seen],
                atol=5e-3,  # boxes are float32: 4e-6 m at 50 m, times 200 pixels, over 1 m
            )


def test_scene_motion_keeps_points_at_their_pixels(sample: Sample) -> None:
    moved = augment(sample, np.random.default_rng(3), MODEL, Augmentation(zoom=(1.0, 1.0), mirror=0.0))
    still = resize_crop(sample, MODEL)
    before, after = (project(s.points[:, :3].astype(float), s.lidar2img)[..., :2] for s in (still, moved))
    ahead = project(sample.points[:, :3].astype(float), still.lidar2img)[..., 2] > 1
    np.testing.assert_allclose(after[ahead], before[ahead], atol=5e-3)  # as above


def test_scene_motion_by_hand() -> None:
    flip_y = np.diag([1.0, -1.0, 1.0, 1.0])
    box = np.array([[1, 2, 3, 4, 5, 6, 0.25, 7, 8]], np.float32)
    empty = Sample(
        "t", "s", np.zeros((0, 2, 2, 3), np.uint8), np.zeros((0, 5), np.float32), np.zeros((0, 4, 4)),
        box, np.zeros(1, np.int64), np.eye(4), np.eye(4),
    )  # fmt: skip
    flipped = transform_scene(empty, flip_y).boxes
    np.testing.assert_allclose(flipped, [[1, -2, 3, 4, 5, 6, -0.25, 7, -8]], rtol=1e-6)
    doubled = transform_scene(empty, np.diag([2.0, 2.0, 2.0, 1.0])).boxes
    np.testing.assert_allclose(doubled, [[2, 4, 6, 8, 10, 12, 0.25, 14, 16]], rtol=1e-6)


def test_unknown_velocity_stays_unknown(sample: Sample) -> None:
    moved = augment(sample, np.random.default_rng(1), MODEL)
    assert np.isnan(moved.boxes[3, 7:9]).all()
    assert np.isfinite(np.delete(moved.boxes, 3, 0)).all()


def test_augment_depends_on_its_generator_alone(sample: Sample) -> None:
    one, two = (augment(sample, np.random.default_rng(5), MODEL) for _ in range(2))
    other = augment(sample, np.random.default_rng(6), MODEL)
    assert (one.images == two.images).all()
    assert (one.points == two.points).all()
    assert not (one.points == other.points).all()


def test_a_transform_leaves_its_input_alone(sample: Sample) -> None:
    kept = replace(
        sample, points=sample.points.copy(), boxes=sample.boxes.copy(), images=sample.images.copy()
    )
    augment(sample, np.random.default_rng(2), MODEL)
    np.testing.assert_array_equal(sample.points, kept.points)
    np.testing.assert_array_equal(sample.boxes, kept.boxes)
    np.testing.assert_array_equal(sample.images, kept.images)


def test_filter_range_cuts_points_in_three_axes_and_boxes_in_two(sample: Sample) -> None:
    boxes = sample.boxes.copy()
    boxes[0, 2] = 40.0  # high above, but inside in the bird's-eye view
    limits = (-20, -20, -5, 20, 20, 3)
    cut = filter_range(replace(sample, boxes=boxes), limits)
    expected = (np.abs(boxes[:, :2]) < 20).all(axis=1)
    np.testing.assert_array_equal(cut.labels, sample.labels[expected])
    assert len(cut.points) == ((np.abs(sample.points[:, :2]) < 20).all(1) & (sample.points[:, 2] > -5)
                               & (sample.points[:, 2] < 3)).sum()  # fmt: skip


def test_mask_modality_takes_its_shares(sample: Sample) -> None:
    rng = np.random.default_rng(0)
    small = replace(sample, images=sample.images[:, :2, :2])
    made = [mask_modality(small, rng, 0.25, 0.25) for _ in range(2000)]
    black = sum(not s.images.any() for s in made)
    bare = sum(len(s.points) == 0 for s in made)
    both = sum(not s.images.any() and len(s.points) == 0 for s in made)
    assert both == 0
    for count in (black, bare):
        assert abs(count - 500) < 4 * np.sqrt(2000 * 0.25 * 0.75)  # four standard deviations of a binomial


def test_box_corners_against_opencv(sample: Sample) -> None:
    x, y, _, length, width, _, yaw = (float(value) for value in sample.boxes[0, :7])
    oracle = cv2.boxPoints(((x, y), (length, width), np.degrees(yaw)))
    corners = box_corners(sample.boxes[:1])[0]
    ours = {tuple(np.round(corner[:2], 3)) for corner in corners}
    assert ours == {tuple(np.round(corner.astype(float), 3)) for corner in oracle}
