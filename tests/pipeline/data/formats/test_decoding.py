import cv2
import numpy as np
import pytest

from pipeline.data.formats.decoding import load_sample
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.images import decode_image
from pipeline.data.sample import DataError
from pipeline.data.sensors import parse_points


@pytest.fixture
def record(copied):
    return read_frames(copied, "v1.0-mini", "mini_val")[0]


def test_a_frame_opens(record):
    sample = load_sample(record)
    assert sample.images.shape == (6, 225, 400, 3)
    assert sample.images.dtype == np.uint8
    assert sample.points.dtype == np.float32
    assert sample.points.shape[1] == 5
    assert not sample.points[:, 4].any()
    assert sample.lidar2img.shape == (6, 4, 4)
    image = cv2.imread(str(record.image_paths[3]))
    np.testing.assert_array_equal(sample.images[3], image)


def test_missing_image(record):
    record.image_paths[2].unlink()
    with pytest.raises(DataError, match=r"frame \w+: has no image of CAM_FRONT_LEFT .*set missing_cameras"):
        load_sample(record)


def test_image_cut_short(record):
    path = record.image_paths[0]
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"CAM_FRONT__.*is cut short"):
        load_sample(record)


def test_image_that_is_none(record):
    record.image_paths[1].write_bytes(b"not a picture")
    with pytest.raises(DataError, match="is no JPEG"):
        load_sample(record)
    with pytest.raises(DataError, match="cut short"):
        decode_image(b"\xff\xd8 nothing of it \xff\xd9", "somewhere.jpg")


def test_images_of_two_sizes(record):
    cv2.imwrite(str(record.image_paths[5]), np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(DataError, match=r"must have one size.*CAM_BACK_RIGHT.* 20x10"):
        load_sample(record)


@pytest.mark.parametrize("size", [0, 19, 1001])
def test_points_cut_short(record, size):
    path = record.lidar_path
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=rf"pcd\.bin: {size} bytes"):
        load_sample(record)


def test_points_that_are_not_finite():
    with pytest.raises(DataError, match="not finite"):
        parse_points(np.array([1, np.nan, 0, 5, 0], "<f4").tobytes(), "x.pcd.bin")


def test_missing_points(record):
    record.lidar_path.unlink()
    with pytest.raises(DataError, match=r"LIDAR_TOP.*cannot be read"):
        load_sample(record)
