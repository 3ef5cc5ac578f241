"""What is inside a box and what overlaps, against shapely."""

import numpy as np
import pytest
from shapely.geometry import Point, Polygon

from pipeline.data.augmentation.transforms import box_corners
from pipeline.data.boxes import overlap_bev, points_inside


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    boxes = np.zeros((count, 9), np.float32)
    boxes[:, :3] = rng.uniform(-8, 8, (count, 3))
    boxes[:, 3:6] = rng.uniform(0.5, 6, (count, 3))
    boxes[:, 6] = rng.uniform(-4, 4, count)
    return boxes


def outline(box: np.ndarray) -> Polygon:
    return Polygon(box_corners(box[None])[0, [0, 2, 6, 4], :2])


def test_overlaps_are_those_of_shapely() -> None:
    rng = np.random.default_rng(1)
    one, other = draw_boxes(rng, 40), draw_boxes(rng, 30)
    expected = np.array([[outline(a).intersection(outline(b)).area > 1e-6 for b in other] for a in one])
    np.testing.assert_array_equal(overlap_bev(one, other), expected)
    assert 100 < expected.sum() < 600  # of 1200: both happen


def test_a_box_within_another_overlaps_it_and_neighbours_that_touch_do_not() -> None:
    boxes = np.zeros((3, 9), np.float32)
    boxes[:, 3:6] = [[4, 4, 1], [1, 1, 1], [4, 4, 1]]
    boxes[2, 0] = 4.0
    met = overlap_bev(boxes, boxes)
    np.testing.assert_array_equal(met, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize("seed", range(3))
def test_points_inside_are_those_of_shapely(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-6, 6, (400, 5)).astype(np.float32)
    box = draw_boxes(rng, 1)[0]
    box[:3] /= 4
    flat = outline(box)
    high = np.abs(points[:, 2] - box[2]) <= box[5] / 2
    expected = [i for i in range(400) if high[i] and flat.contains(Point(*points[i, :2]))]
    assert points_inside(points, box).tolist() == expected
