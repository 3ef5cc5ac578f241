"""GT sampling: as many as wished, none on top of another, points and pictures where they belong."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from shapely.geometry import Polygon

from pipeline.config.settings import CLASSES
from pipeline.data.augmentation.gt_sampling import UnifiedObjectSample
from pipeline.data.augmentation.object_database import open_database
from pipeline.data.augmentation.object_database_writer import write_database
from pipeline.data.augmentation.transforms import box_corners, image_rectangles
from pipeline.data.boxes import points_inside
from pipeline.data.formats.file_source import FileSource
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.sample import DataError, Sample

GROUPS = dict.fromkeys(CLASSES, 8)


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("objects")
    write_database(FileSource(read_frames(dataset, "v1.0-mini", "mini_train")), out)
    return out


@pytest.fixture(scope="module")
def frame(dataset):
    return FileSource(read_frames(dataset, "v1.0-mini", "mini_val"))[0]


def step(folder, **keys):
    sampler = {"info_path": str(folder), "sample_groups": GROUPS, **keys.pop("db_sampler", {})}
    return UnifiedObjectSample(db_sampler=sampler, sample_2d=True, **keys)


def test_none_overlaps_another(folder, frame):
    for seed in range(5):
        pasted = step(folder)(frame, np.random.default_rng(seed))
        outlines = [Polygon(corners[[0, 2, 6, 4], :2]) for corners in box_corners(pasted.boxes)]
        for index in range(len(frame.boxes), len(outlines)):
            for other in range(index):
                assert outlines[index].intersection(outlines[other]).area < 1e-6


def test_each_class_is_filled_up_and_no_further(folder, frame):
    pasted = step(folder)(frame, np.random.default_rng(0))
    before = np.bincount(frame.labels, minlength=10)
    after = np.bincount(pasted.labels, minlength=10)
    assert (after >= before).all()
    assert (after <= np.maximum(before, 8)).all()
    assert (after - before).sum() > 10
    half = step(folder, db_sampler={"rate": 0.5})
    drawn = np.bincount(half.database.labels[half.draw(frame, np.random.default_rng(0))], minlength=10)
    assert (drawn <= np.round(0.5 * np.maximum(8 - before, 0))).all()


def test_objects_with_few_points_stay_out(folder, frame):
    picky = step(folder, db_sampler={"prepare": {"filter_by_min_points": dict.fromkeys(CLASSES, 30)}})
    chosen = picky.draw(frame, np.random.default_rng(0))
    assert len(chosen)
    assert picky.database.num_points[chosen].min() >= 30


def test_points_of_a_pasted_object_are_all_that_is_in_its_box(folder, frame):
    pasting, rng = step(folder), np.random.default_rng(1)
    chosen = pasting.draw(frame, np.random.default_rng(1))
    pasted = pasting(frame, rng)
    boxes = pasted.boxes[len(frame.boxes) :]
    np.testing.assert_array_equal(boxes, pasting.database.boxes[chosen])
    outside = np.ones(len(frame.points), bool)
    for box in boxes:
        outside[points_inside(frame.points, box)] = False
    assert not outside.all()
    np.testing.assert_array_equal(pasted.points[: outside.sum()], frame.points[outside])
    put = pasted.points[outside.sum() :]
    for index, box in zip(chosen, boxes, strict=True):
        expected = pasting.database.points(int(index))
        np.testing.assert_array_equal(put[: len(expected), 3:], expected[:, 3:])
        np.testing.assert_allclose(put[: len(expected), :3], expected[:, :3] + box[:3], atol=1e-6)
        put = put[len(expected) :]
    assert not len(put)


def test_pixels_change_in_pasted_rectangles_alone(folder, frame):
    pasted = step(folder, mixup_rate=0.5)(frame, np.random.default_rng(0))
    new = pasted.boxes[len(frame.boxes) :]
    changed = (pasted.images != frame.images).any(axis=3)
    allowed = np.zeros_like(changed)
    for view, rectangles in enumerate(image_rectangles(new, frame.lidar2img, changed.shape[1:])):
        for left, top, right, bottom in rectangles:
            allowed[view, top:bottom, left:right] = True
    assert changed.sum() > 1000
    assert not (changed & ~allowed).any()


def test_the_generator_decides_and_the_input_is_left_alone(folder, frame):
    kept = replace(frame, images=frame.images.copy(), points=frame.points.copy(), boxes=frame.boxes.copy())
    one, two = (step(folder)(frame, np.random.default_rng(4)) for _ in range(2))
    other = step(folder)(frame, np.random.default_rng(5))
    for field in ("images", "points", "boxes"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
        np.testing.assert_array_equal(getattr(frame, field), getattr(kept, field))
    assert not np.array_equal(one.boxes, other.boxes)


def lane(own_depth, pasted_depth, rate=-1.0, modify=False, method="depth"):
    """Paste a white object on a grey image that shows one dark object, both straight ahead."""
    box = np.zeros((2, 9), np.float32)
    box[:, 2], box[:, 3:6] = (own_depth, pasted_depth), 1.0
    look = np.array([[100.0, 0, 50, 0], [0, 100, 50, 0], [0, 0, 1, 0], [0, 0, 0, 1]])[None]  # along z
    image = np.full((1, 100, 100, 3), 100, np.uint8)
    left, top, right, bottom = image_rectangles(box[:1], look, (100, 100))[0, 0]
    image[0, top:bottom, left:right] = 20
    points = np.array([[0, 0, own_depth, 0, 0], [4, 0, 10, 0, 0]], np.float32)
    frame = Sample("t", "s", image, points, look, box[:1], np.zeros(1, np.int64), np.eye(4), np.eye(4))
    database = SimpleNamespace(
        boxes=box[1:], labels=np.zeros(1, np.int64), num_points=np.array([1]),
        points=lambda _: np.zeros((1, 5), np.float32), crop=lambda _: np.full((30, 30, 3), 240, np.uint8),
    )  # fmt: skip
    sampler = {"info_path": "unused", "sample_groups": {"car": 2}}
    pasting = UnifiedObjectSample(sampler, True, method, modify, rate)
    pasting.__dict__["database"] = database
    # seen from above they are one: the overlap would keep it out, so it is painted directly
    whole = replace(
        frame,
        boxes=box,
        labels=np.zeros(2, np.int64),
        points=np.append(points, [[0, 0, pasted_depth, 0, 0]], 0),
    )
    return pasting._paint(whole, [database.crop(0)], np.array([-1, -1, 0]))


def test_the_nearer_one_is_painted_last():
    near, far = lane(own_depth=20, pasted_depth=10), lane(own_depth=10, pasted_depth=20)
    assert near.images[0, 50, 50, 0] == 240
    assert far.images[0, 50, 50, 0] == 20  # the frame's own object covers the pasted one
    assert lane(own_depth=10, pasted_depth=20, method="order").images[0, 50, 50, 0] == 240


def test_pictures_are_mixed_at_the_rate():
    assert lane(own_depth=20, pasted_depth=10, rate=0.5).images[0, 50, 50, 0] == (20 + 240) // 2
    # far pasted one first, then the own object over it: (20 + 240) / 2, and half of that with 20
    assert lane(own_depth=10, pasted_depth=20, rate=0.5).images[0, 50, 50, 0] == (130 + 20) // 2


def test_points_behind_a_pasted_picture_can_be_dropped():
    np.testing.assert_array_equal(lane(20, 10, modify=True).points[:, 2], [10, 10])  # the hidden one is gone
    np.testing.assert_array_equal(lane(10, 20, modify=True).points[:, 2], [10, 10])  # now the pasted one is
    assert len(lane(20, 10).points) == 3


@pytest.mark.parametrize(
    ("sampler", "sentence"),
    [
        ({"points": 1}, r"unknown keys \['points'\]"),
        ({"info_path": "x"}, r"\['sample_groups'\] is missing"),
        ({"info_path": "x", "sample_groups": {"tram": 1}}, "sample_groups names 'tram'"),
        ({"info_path": "x", "sample_groups": {}, "classes": ["bus"]}, "expected the ten of CMT"),
    ],
)
def test_refusals(sampler, sentence):
    with pytest.raises(DataError, match=sentence):
        UnifiedObjectSample(db_sampler=sampler)


def test_a_difficulty_that_everything_has_is_refused(folder, frame):
    with pytest.raises(DataError, match="filter_by_difficulty without 0"):
        step(folder, db_sampler={"prepare": {"filter_by_difficulty": [-1, 0]}})(
            frame, np.random.default_rng(0)
        )


def test_the_collision_rule_is_that_of_mmdet3d(folder, frame):
    """Oracle: the loop of DataBaseSampler.sample_class_v2, on shapely's overlaps."""
    from pipeline.data.augmentation.gt_sampling import _free

    rng = np.random.default_rng(0)
    boxes = np.zeros((60, 9), np.float32)
    boxes[:, :2], boxes[:, 3:6] = rng.uniform(-15, 15, (60, 2)), rng.uniform(1, 5, (60, 3))
    held, new = boxes[:30], boxes[30:]
    outlines = [Polygon(corners[[0, 2, 6, 4], :2]) for corners in box_corners(boxes)]
    met = np.array([[a.intersection(b).area > 1e-6 for b in outlines] for a in outlines])
    np.fill_diagonal(met, False)
    expected = []
    for index in range(30, 60):
        expected.append(not met[index].any())
        if not expected[-1]:
            met[index] = met[:, index] = False
    np.testing.assert_array_equal(_free(held, new), expected)
    assert 3 < sum(expected) < 27


def test_the_database_is_opened_once(folder):
    pasting = step(folder)
    assert pasting.database is pasting.database
    assert len(open_database(folder).labels) == len(pasting.database.labels)
