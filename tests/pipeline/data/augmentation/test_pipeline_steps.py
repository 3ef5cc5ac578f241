"""Steps of a train_pipeline obey the laws of geometry, and their values are CMT's."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from pipeline.config.settings import CLASSES
from pipeline.data.augmentation.pipeline_steps import (
    CustomRandomFlip3D,
    GlobalRotScaleTransAll,
    LoadAnnotations3D,
    ModalMask3D,
    ObjectNameFilter,
    ObjectRangeFilter,
    PointShuffle,
    PointsRangeFilter,
    ResizeCropFlipImage,
)
from pipeline.data.augmentation.transforms import project, resize_crop
from pipeline.data.boxes import points_inside
from pipeline.data.sample import DataError, Sample

NATIVE = (180, 320)  # a fifth of nuScenes'
R50 = {"H": 180, "W": 320, "final_dim": (64, 160), "resize_lim": (0.47, 0.625), "bot_pct_lim": (0.0, 0.0),
       "rot_lim": (0.0, 0.0), "rand_flip": True}  # fmt: skip
"""CMT's image augmentation at a fifth of the size: from 0.47 to 0.5 it leaves a black margin."""


def camera(turn: float) -> np.ndarray:
    """A pinhole camera that looks along (sin turn, cos turn, 0)."""
    extrinsic = np.eye(4)
    extrinsic[:3, :3] = [[np.cos(turn), -np.sin(turn), 0], [0, 0, -1], [np.sin(turn), np.cos(turn), 0]]
    extrinsic[:3, 3] = [0.1, 0.3, -0.4]
    intrinsic = np.eye(4)
    intrinsic[:2, :3] = [[0.8 * NATIVE[1], 0, NATIVE[1] / 2], [0, 0.8 * NATIVE[1], NATIVE[0] / 2]]
    return intrinsic @ extrinsic


@pytest.fixture
def sample() -> Sample:
    """Boxes, each full of points; images with one soft spot where a known point is seen."""
    rng = np.random.default_rng(3)
    boxes = np.zeros((10, 9), np.float32)
    boxes[:, :3] = rng.uniform([-40, -40, -1], [40, 40, 1], (10, 3))
    boxes[:, 3:6] = rng.uniform(1, 5, (10, 3))
    boxes[:, 6] = rng.uniform(-np.pi, np.pi, 10)
    boxes[:, 7:9] = rng.normal(0, 3, (10, 2))
    boxes[2, 7:9] = np.nan
    cos, sin = np.cos(boxes[:, None, 6]), np.sin(boxes[:, None, 6])
    local = rng.uniform(-0.49, 0.49, (10, 20, 3)) * boxes[:, None, 3:6]
    spots = np.stack([cos * local[..., 0] - sin * local[..., 1],
                      sin * local[..., 0] + cos * local[..., 1], local[..., 2]], -1)  # fmt: skip
    points = np.zeros((200, 5), np.float32)
    points[:, :3] = (spots + boxes[:, None, :3]).reshape(-1, 3)
    points[:, 4] = np.arange(200) / 400
    return Sample(
        token="t", scene="s", images=np.zeros((6, *NATIVE, 3), np.uint8), points=points,
        lidar2img=np.stack([camera(turn) for turn in np.arange(6) * np.pi / 3]), boxes=boxes,
        labels=np.arange(10), lidar2ego=np.eye(4), ego2global=np.eye(4),
    )  # fmt: skip


SCENE_STEPS = (
    GlobalRotScaleTransAll([-0.785, 0.785], [0.9, 1.1], [0.5, 0.5, 0.5]),
    CustomRandomFlip3D(flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5),
)


@pytest.mark.parametrize("seed", range(8))
def test_points_stay_in_their_boxes(sample: Sample, seed: int) -> None:
    rng = np.random.default_rng(seed)
    moved = sample
    for step in SCENE_STEPS:
        moved = step(moved, rng)
    assert not np.allclose(moved.points, sample.points)
    for index, box in enumerate(moved.boxes):
        assert set(points_inside(moved.points, box)) >= set(range(index * 20, index * 20 + 20))


@pytest.mark.parametrize("seed", range(8))
def test_a_painted_point_stays_at_its_projection(sample: Sample, seed: int) -> None:
    """Through every step that moves points or pixels, with CMT's ranges."""
    spot = np.array([[0.5, 12.0, -0.6]])
    u, v, _ = project(spot, sample.lidar2img)[0, 0]
    rows, columns = np.mgrid[: NATIVE[0], : NATIVE[1]] + 0.5  # pixel i covers [i, i + 1)
    images = sample.images.copy()
    images[0] = np.rint(255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 72))[..., None]
    marked = replace(sample, images=images, points=np.append(spot, [[0, 0]], 1).astype(np.float32))
    rng = np.random.default_rng(seed)
    for step in (*SCENE_STEPS, ResizeCropFlipImage(R50)):
        marked = step(marked, rng)
    image = marked.images[0, ..., 0].astype(float)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    found = (image * columns).sum() / image.sum(), (image * rows).sum() / image.sum()
    expected = project(marked.points[:, :3].astype(float), marked.lidar2img)[0, 0, :2]
    # bilinear halving of an 8-bit spot of 6 pixels moves its centre by less than a tenth of a pixel
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_motion_is_rotation_then_scale_then_shift_by_hand(sample: Sample) -> None:
    step = GlobalRotScaleTransAll([np.pi / 2, np.pi / 2], [2.0, 2.0], 0.0)
    points = np.array([[1, 0, 3, 7, 0.1]], np.float32)
    moved = step(replace(sample, points=points), np.random.default_rng(0))
    np.testing.assert_allclose(moved.points, [[0, 2, 6, 7, 0.1]], atol=1e-6)
    np.testing.assert_allclose(moved.boxes[:, 3:6], sample.boxes[:, 3:6] * 2, rtol=1e-6)
    np.testing.assert_allclose(moved.boxes[0, 7:9], 2 * sample.boxes[0, [8, 7]] * [-1, 1], rtol=1e-5)


@pytest.mark.parametrize(("keys", "axis"), [("flip_ratio_bev_horizontal", 1), ("flip_ratio_bev_vertical", 0)])
def test_horizontal_mirrors_y_and_vertical_x(sample: Sample, keys: str, axis: int) -> None:
    signs = np.ones(5, np.float32)
    signs[axis] = -1
    moved = CustomRandomFlip3D(**{keys: 1.0})(sample, np.random.default_rng(0))
    np.testing.assert_allclose(moved.points, sample.points * signs, rtol=1e-6)


def test_image_draws_cover_cmts_ranges(sample: Sample) -> None:
    rng, step = np.random.default_rng(0), ResizeCropFlipImage(R50)
    cuts = [step._draw(rng) for _ in range(400)]
    heights, widths = np.array([cut.new for cut in cuts]).T
    assert heights.min() == int(180 * 0.47)
    assert heights.max() == int(180 * 0.625 - 1e-9)
    assert all(cut.top == cut.new[0] - 64 for cut in cuts)  # the sky is cut away
    assert all(0 <= cut.left <= max(0, width - 160) for cut, width in zip(cuts, widths, strict=True))
    assert max(cut.left for cut in cuts) >= 35  # of 40, which only the largest resize reaches
    assert 0.4 < np.mean([cut.mirror for cut in cuts]) < 0.6


def test_one_draw_serves_all_views_or_each_has_its_own(sample: Sample) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(1, 255, sample.images.shape, dtype=np.uint8)
    images[:] = images[0]
    made = [
        ResizeCropFlipImage(R50, pic_wise=wise)(replace(sample, images=images), rng) for wise in (False, True)
    ]
    assert (made[0].images == made[0].images[0]).all()
    assert not (made[1].images == made[1].images[0]).all()


def test_what_is_too_small_is_filled_with_black_at_the_right(sample: Sample) -> None:
    conf = {**R50, "resize_lim": (0.47, 0.47), "rand_flip": False}
    white = replace(sample, images=np.full_like(sample.images, 255))
    made = ResizeCropFlipImage(conf)(white, np.random.default_rng(0))
    assert made.images.shape == (6, 64, 160, 3)
    assert (made.images[:, :, :150] == 255).all()  # int(320 * 0.47)
    assert (made.images[:, :, 150:] == 0).all()


@pytest.mark.parametrize(("size", "top"), [((320, 800), 130), ((640, 1600), 260)])
def test_in_tests_the_published_rows_are_cut_away(size: tuple[int, int], top: int) -> None:
    """Facts of CMT: 900 x 1600 becomes 450 x 800 less 130 rows, or stays less 260; as our evaluation does."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (90, 160, 3), dtype=np.uint8), (1600, 900))
    frame = Sample(
        "t", "s", image[None], np.zeros((0, 5), np.float32), np.eye(4)[None], np.zeros((0, 9), np.float32),
        np.zeros(0, np.int64), np.eye(4), np.eye(4),
    )  # fmt: skip
    conf = {**R50, "H": 900, "W": 1600, "final_dim": size}
    made = ResizeCropFlipImage(conf, training=False)(frame, rng)
    expected = cv2.resize(image, (size[1], size[1] * 9 // 16))[top:]
    np.testing.assert_array_equal(made.images[0], expected)
    ours = resize_crop(frame, size)
    np.testing.assert_array_equal(made.images, ours.images)
    np.testing.assert_allclose(made.lidar2img, ours.lidar2img)


def test_images_of_another_size_are_refused(sample: Sample) -> None:
    with pytest.raises(DataError, match=r"frame t: its images are 320x180, data_aug_conf says W=1600, H=900"):
        ResizeCropFlipImage({**R50, "H": 900, "W": 1600})(sample, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: ResizeCropFlipImage({**R50, "rot_lim": (-5.4, 5.4)}), "rot_lim=.* would turn the images"),
        (lambda: ResizeCropFlipImage({**R50, "rot": 1}), "data_aug_conf has the keys"),
        (lambda: ModalMask3D(mode="trian"), "mode 'trian'"),
        (lambda: LoadAnnotations3D(with_label_3d=False), "needs with_bbox_3d=True"),
        (lambda: CustomRandomFlip3D(sync_2d=True), "no meaning for six cameras"),
        (lambda: ObjectNameFilter(["car", "bus"]), "expected the ten of CMT in its order"),
    ],
)
def test_refusals(build, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        build()


def test_modal_mask_takes_its_quarters_and_keeps_the_number_of_points(sample: Sample) -> None:
    small = replace(sample, images=np.full((6, 2, 2, 3), 9, np.uint8))
    rng, step = np.random.default_rng(0), ModalMask3D(mode="train")
    made = [step(small, rng) for _ in range(2000)]
    black, bare = ([not getattr(s, name).any() for s in made] for name in ("images", "points"))
    assert not np.logical_and(black, bare).any()
    for count in (sum(black), sum(bare)):
        assert abs(count - 500) < 4 * np.sqrt(2000 * 0.25 * 0.75)  # four standard deviations of a binomial
    assert all(len(s.points) == len(sample.points) for s in made)
    assert not ModalMask3D(mask_modal="points")(small, rng).points.any()


def test_an_unknown_velocity_becomes_zero(sample: Sample) -> None:
    made = LoadAnnotations3D()(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(made.boxes[2, 7:9], [0, 0])
    np.testing.assert_array_equal(np.delete(made.boxes, 2, 0), np.delete(sample.boxes, 2, 0))


def test_filters_and_shuffle(sample: Sample) -> None:
    rng, limits = np.random.default_rng(0), (-30, -30, -5, 30, 30, 3)
    inside = (np.abs(sample.points[:, :2]) < 30).all(1) & (np.abs(sample.points[:, 2] + 1) < 4)
    np.testing.assert_array_equal(PointsRangeFilter(limits)(sample, rng).points, sample.points[inside])
    kept = (np.abs(sample.boxes[:, :2]) < 30).all(1)
    np.testing.assert_array_equal(ObjectRangeFilter(limits)(sample, rng).labels, sample.labels[kept])
    np.testing.assert_array_equal(ObjectNameFilter(CLASSES[:4])(sample, rng).labels, [0, 1, 2, 3])
    shuffled = PointShuffle()(sample, rng).points
    assert not np.array_equal(shuffled, sample.points)
    np.testing.assert_array_equal(shuffled[np.argsort(shuffled[:, 4])], sample.points)
