"""The same frames through tables, info files 1.0 and 1.1, and shards of each: the same bits."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.formats.infos.writer import write_infos
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.formats.open import open_source
from pipeline.data.formats.shard_writer import write_shards
from pipeline.data.sample import CAMERAS, DataError, Sample
from pipeline.data.source import READ_ALL, Reading, Source
from tests.pipeline.data.formats.spoilt import (
    RADAR_ONLY,
    VERSION,
    WITHOUT_BOXES,
    WITHOUT_CAMERA,
    converter_infos,
    make_spoilt,
)

SPLIT = "mini_train"
BLACK = Reading(missing_cameras="black")
FORMS = ("tables", "1.0", "1.1", "shards", "shards of 1.0")


@pytest.fixture(scope="module")
def root(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return made_once("spoilt", _make)


def _make(root: Path) -> None:
    make_spoilt(root)
    converter_infos(root, root / "infos_1_0.pkl")
    write_infos(read_frames(root, VERSION, SPLIT), root / "infos_1_1.pkl", VERSION)
    for name in (".", "infos_1_0.pkl"):
        write_shards(root / name, VERSION, SPLIT, root / f"shards/{name}", missing_cameras="black")


def source(root: Path, form: str, reading: Reading = BLACK) -> Source:
    places = {
        "tables": ".",
        "1.0": "infos_1_0.pkl",
        "1.1": "infos_1_1.pkl",
        "shards": "shards",
        "shards of 1.0": "shards/infos_1_0.pkl",
    }
    place = root / places[form]
    if form == "shards of 1.0":  # a folder whose name ends as an info file's does
        from pipeline.data.formats.shards import ShardSource

        return ShardSource(place, SPLIT, reading)
    return open_source(place, VERSION, SPLIT, reading)


def bits(sample: Sample) -> dict[str, object]:
    """Every value of a sample, bit for bit."""
    found = {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample)}
    return {
        name: (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
        for name, value in found.items()
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reading", [BLACK, dataclasses.replace(BLACK, valid_only=False, sweeps=4)])
@pytest.mark.parametrize("form", FORMS[1:])
def test_every_form_gives_the_same_bits(root: Path, form: str, reading: Reading) -> None:
    tables, other = source(root, "tables", reading), source(root, form, reading)
    assert len(tables) == len(other) == 3
    assert list(tables.labels) == list(other.labels)
    for index in range(3):
        one, two = bits(tables[index]), bits(other[index])
        assert [name for name in one if one[name] != two[name]] == []


@pytest.mark.parametrize("form", FORMS)
def test_boxes_that_only_the_radar_sees_are_kept(root: Path, form: str) -> None:
    every = source(root, form, dataclasses.replace(BLACK, valid_only=False))[RADAR_ONLY]
    kept = source(root, form)[RADAR_ONLY]
    unseen = len(every.boxes) - len(kept.boxes)
    record = read_frames(root, VERSION, SPLIT)[RADAR_ONLY]
    assert unseen == (~record.valid).sum() >= 1
    radar = record.boxes[record.valid & (record.num_points == 0)]
    assert len(radar) == 1
    assert (kept.boxes == radar[0]).all(axis=1).any()


@pytest.mark.parametrize("form", FORMS)
def test_a_frame_without_boxes_has_none(root: Path, form: str) -> None:
    sample = source(root, form)[WITHOUT_BOXES]
    assert sample.boxes.shape == (0, 9)
    assert sample.labels.shape == (0,)


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_camera_is_named_or_black(root: Path, form: str) -> None:
    missing = CAMERAS[3]
    with pytest.raises(DataError, match=rf'frame \w+: has no image of {missing} .*missing_cameras="black"'):
        source(root, form, READ_ALL)[WITHOUT_CAMERA]
    sample = source(root, form)[WITHOUT_CAMERA]
    assert [bool(image.any()) for image in sample.images] == [camera != missing for camera in CAMERAS]
    assert source(root, form, READ_ALL)[RADAR_ONLY].images.any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("form", FORMS)
def test_points_of_four_columns_are_what_they_are(root: Path, form: str) -> None:
    """Oracle: numpy on the files. Sweeps have four columns, key frames five."""
    record = read_frames(root, VERSION, SPLIT)[1]
    points = source(root, form)[1].points
    key = np.fromfile(record.lidar_path, "<f4").reshape(-1, 5)
    np.testing.assert_array_equal(points[: len(key), :4], key[:, :4])
    begin = len(key)
    for sweep in record.sweeps:
        width = 5 if "samples" in sweep.path.parts else 4
        cloud = np.fromfile(sweep.path, "<f4").reshape(-1, width)
        part = points[begin : begin + len(cloud)]
        np.testing.assert_array_equal(part[:, 3], cloud[:, 3])  # intensity: nothing moves it
        np.testing.assert_array_equal(part[:, 4], np.float32(sweep.lag_s))
        begin += len(cloud)
    assert begin == len(points)
    assert len(record.sweeps) == 10
