import dataclasses

import numpy as np
import pytest

from pipeline.data.boxes import points_inside
from pipeline.data.corruptions import CONDITIONS, SECTOR_RAD, corrupt
from pipeline.data.formats.decoding import load_sample
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.sample import DataError


@pytest.fixture(scope="module")
def sample(dataset):
    return load_sample(read_frames(dataset, "v1.0-mini", "mini_val")[0])


def test_names():
    assert list(CONDITIONS) == [
        *("clean", "lidar_sector", "no_lidar", "one_camera", "no_cameras"),
        *("lidar_beams", "lidar_fov", "lidar_objects", "occlusion"),
    ]


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


def test_what_the_first_five_conditions_do_has_not_changed(sample):
    """Rows of one study name conditions by these words alone; their draws must stay what they were."""
    points = (np.arange(5 * 360) % 97).reshape(360, 5).astype(np.float32) - 48
    still = dataclasses.replace(
        sample, token="fixed", points=points, images=np.full((6, 2, 2, 3), 9, np.uint8)
    )
    found = {}
    for condition in ("clean", "lidar_sector", "no_lidar", "one_camera", "no_cameras"):
        made = corrupt(still, condition, 0)
        found[condition] = len(made.points), "".join("01"[bool(image.any())] for image in made.images)
    assert found == {
        "clean": (360, "111111"),
        "lidar_sector": (178, "111111"),
        "no_lidar": (0, "111111"),
        "one_camera": (360, "011111"),
        "no_cameras": (360, "000000"),
    }


def test_four_beams_are_left_and_every_point_of_theirs(sample):
    """The generated scanner's beams are known: 32 from -30.67 to 10.67 degrees, 1080 shots each."""
    elevation = np.rad2deg(np.arctan2(sample.points[:, 2], np.hypot(*sample.points[:, :2].T)))
    from_top = np.rint((10.67 - elevation) * 31 / (10.67 + 30.67))
    wanted = sample.points[np.isin(from_top, (7, 9, 11, 13))]
    kept = corrupt(sample, "lidar_beams", 0).points
    assert 0 < len(kept) < len(sample.points) / 4
    np.testing.assert_array_equal(kept, wanted)


def test_limited_field_of_view_is_ahead(sample):
    """Azimuths of nuScenes-R are measured from +y toward +x."""
    degrees = np.rad2deg(np.arctan2(sample.points[:, 0], sample.points[:, 1]))
    kept = corrupt(sample, "lidar_fov", 0).points
    np.testing.assert_array_equal(kept, sample.points[(degrees >= -60) & (degrees <= 60)])
    front = sample.lidar2img[0] @ np.append(kept[:, :3].mean(0), 1)
    assert front[2] > 0, "what is left lies before the front camera"


def test_objects_fail_in_every_other_frame_and_all_at_once(sample):
    inside = np.zeros(len(sample.points), bool)
    for box in sample.boxes:
        inside[points_inside(sample.points, box)] = True
    assert inside.any()
    lost = 0
    for seed in range(200):
        kept = corrupt(sample, "lidar_objects", seed).points
        if len(kept) < len(sample.points):
            np.testing.assert_array_equal(kept, sample.points[~inside])
            lost += 1
    assert 70 <= lost <= 130  # 200 draws of 1/2: 100, standard deviation 7; four of them either way


def test_dirt_hides_a_part_of_every_picture_and_only_darkens_to_its_shade(sample):
    white = dataclasses.replace(sample, images=np.full_like(sample.images, 255))
    dirty = corrupt(white, "occlusion", 3).images
    for image in dirty:
        hidden = (image < 128).all(-1).mean()
        assert 0.02 < hidden < 0.7
        assert (image == 255).all(-1).mean() > 0.2, "clean glass leaves a pixel as it is"
    assert len({image.tobytes() for image in dirty}) == 6, "each lens has dirt of its own"
    black = dataclasses.replace(sample, images=np.zeros_like(sample.images))
    assert corrupt(black, "occlusion", 3).images.max() > 0, "dirt is seen before a dark scene"


def test_new_draws_depend_on_seed_and_token(sample):
    other = dataclasses.replace(sample, token="another")
    drawn = [corrupt(sample, "occlusion", 1), corrupt(sample, "occlusion", 2), corrupt(other, "occlusion", 1)]
    assert len({made.images.tobytes() for made in drawn}) == 3
    for condition in ("lidar_beams", "lidar_fov"):  # they draw nothing
        one, two = corrupt(sample, condition, 1), corrupt(other, condition, 2)
        np.testing.assert_array_equal(one.points, two.points)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_frame_without_points_or_objects_passes(sample, condition):
    bare = dataclasses.replace(
        sample, points=sample.points[:0], boxes=sample.boxes[:0], labels=sample.labels[:0]
    )
    assert corrupt(bare, condition, 0).points.shape == (0, 5)


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
