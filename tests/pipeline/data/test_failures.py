import dataclasses

import numpy as np
import pytest

from pipeline.data.decode import load_sample
from pipeline.data.failures import CONDITIONS, SECTOR_RAD, corrupt
from pipeline.data.sample import DataError
from pipeline.data.tables import read_frames


@pytest.fixture(scope="module")
def sample(dataset):
    return load_sample(read_frames(dataset, "v1.0-mini", "mini_val")[0])


def test_names():
    assert list(CONDITIONS) == ["clean", "lidar_sector", "no_lidar", "one_camera", "no_cameras"]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_repeatable_and_only_the_sensor_changes(sample, condition):
    before = sample.points.tobytes(), sample.images.tobytes()
    one, two = corrupt(sample, condition, 7), corrupt(sample, condition, 7)
    np.testing.assert_array_equal(one.points, two.points)
    np.testing.assert_array_equal(one.images, two.images)
    assert (sample.points.tobytes(), sample.images.tobytes()) == before
    assert one.points.dtype == np.float32
    assert one.images.shape == sample.images.shape
    for field in ("boxes", "labels", "lidar2img", "lidar2ego", "ego2global", "token", "scene"):
        assert getattr(one, field) is getattr(sample, field)


def test_clean_is_the_same_sample(sample):
    assert corrupt(sample, "clean", 0) is sample


def test_dead_lidar_and_black_cameras(sample):
    assert corrupt(sample, "no_lidar", 0).points.shape == (0, 5)
    np.testing.assert_array_equal(corrupt(sample, "no_lidar", 0).images, sample.images)
    black = corrupt(sample, "no_cameras", 0)
    assert not black.images.any()
    np.testing.assert_array_equal(black.points, sample.points)


def test_one_camera_goes_black_and_every_one_can(sample):
    struck = set()
    for seed in range(60):  # six cameras: all but sure to be drawn in sixty
        images = corrupt(sample, "one_camera", seed).images
        black = [view for view in range(6) if not images[view].any()]
        assert len(black) == 1
        struck.add(black[0])
        rest = [view for view in range(6) if view != black[0]]
        np.testing.assert_array_equal(images[rest], sample.images[rest])
    assert struck == set(range(6))


def test_lost_sector_is_a_third_of_the_turn(sample):
    kept = corrupt(sample, "lidar_sector", 1).points
    angle = np.sort(np.arctan2(kept[:, 1], kept[:, 0]))
    gaps = np.diff(np.concatenate([angle, angle[:1] + 2 * np.pi]))
    assert SECTOR_RAD <= gaps.max() < SECTOR_RAD + 0.1  # the scanner's step is 0.006 rad, some shots miss
    rest = {row.tobytes() for row in sample.points}
    assert all(row.tobytes() in rest for row in kept)


def test_draw_depends_on_seed_and_token(sample):
    other = dataclasses.replace(sample, token="another")
    sectors = [
        corrupt(sample, "lidar_sector", 1),
        corrupt(sample, "lidar_sector", 2),
        corrupt(other, "lidar_sector", 1),
    ]
    assert len({made.points.tobytes() for made in sectors}) == 3


def test_unknown_condition(sample):
    with pytest.raises(DataError, match="unknown sensor condition 'fog'; choose among clean, "):
        corrupt(sample, "fog", 0)
