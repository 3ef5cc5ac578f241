"""Pictures of samples: boxes are drawn where they project, points where they lie."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.augmentation.drawing import draw_sample
from pipeline.data.formats.file_source import FileSource
from pipeline.data.formats.nuscenes_tables import read_frames


@pytest.fixture(scope="module")
def sample(dataset):
    return FileSource(read_frames(dataset, "v1.0-mini", "mini_val"))[0]


def test_a_box_ahead_appears_in_the_front_view_and_in_the_upper_half_of_the_birds_eye_view(sample):
    box = np.array([[0.5, 20, -1, 6, 2.5, 2.5, np.pi / 2, 0, 0]], np.float32)
    bare = replace(sample, images=np.zeros_like(sample.images), points=sample.points[:0])
    picture = draw_sample(replace(bare, boxes=box, labels=np.array([6])), width=1500)[:-26]
    side = picture.shape[0]
    tile = (picture.shape[1] - side) // 3, side // 2
    rows, columns = np.nonzero(picture.max(axis=2) > 60)  # the ground is darker
    views = columns < 3 * tile[0]
    assert views.sum() > 50
    assert ((columns[views] // tile[0]) == 1).all()  # CAM_FRONT is in the middle
    assert (rows[views] < tile[1]).all()
    assert (~views).sum() > 10
    middle = 3 * tile[0] + side / 2
    assert (np.abs(columns[~views] - middle) < side / 20).all()
    assert (rows[~views] < side / 2).all()


def test_points_lie_where_they_were_measured(sample):
    points = np.array([[28, 0, 0, 0, 0], [0, -28, 0, 0, 0.5]], np.float32)
    bare = replace(sample, images=np.zeros_like(sample.images), points=points, boxes=sample.boxes[:0],
                   labels=sample.labels[:0])  # fmt: skip
    picture = draw_sample(bare, width=1500)[:-26]
    side = picture.shape[0]
    bev = picture[:, -side:, 0].astype(int)
    spots = {(round(4 * r / side), round(4 * c / side)): bev[r, c] for r, c in np.argwhere(bev > 60)}
    assert spots.keys() == {(2, 3), (3, 2)}  # quarters of the side: right of the middle, below it
    assert spots[2, 3] > spots[3, 2]  # the older is darker
