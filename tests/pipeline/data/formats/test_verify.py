import json

import numpy as np
import pytest

from pipeline.data.formats.decoding import load_sample
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.formats.shard_writer import write_shards
from pipeline.data.formats.verify import check, points_in_boxes

VERSION = "v1.0-mini"


def test_a_sound_dataset_has_no_problem(dataset):
    calls = []
    report = check(dataset, VERSION, lambda done, total: calls.append((done, total)))
    assert report.ok, report.problems
    assert report.counts["frames"] == 6
    assert report.counts["scenes"] == 2
    assert report.counts["images"] == 36
    assert report.counts["boxes"] == sum(n for key, n in report.counts.items() if key.startswith("boxes/"))
    assert calls[-1] == (6, 6)


def test_counting_points_agrees_with_the_tables(dataset):
    for record in read_frames(dataset, VERSION, "mini_train"):
        counts = points_in_boxes(load_sample(record).points, record.boxes)
        # Boxes are float32 here and float64 in the tables: a point on a face may change sides.
        assert np.abs(counts - record.num_points).max() <= 1


def test_every_broken_file_is_listed(copied):
    first, second, third = read_frames(copied, VERSION, "mini_val")
    first.image_paths[4].unlink()
    second.lidar_path.write_bytes(b"12345")
    third.image_paths[0].write_bytes(b"no")
    problems = check(copied, VERSION).problems
    assert len(problems) == 3
    assert "CAM_BACK_LEFT" in problems[0]
    assert "5 bytes" in problems[1]
    assert "no JPEG" in problems[2]


def test_scan_of_another_frame(copied):
    frames = read_frames(copied, VERSION, "mini_val") + read_frames(copied, VERSION, "mini_train")
    frames[0].lidar_path.write_bytes(frames[3].lidar_path.read_bytes())
    problems = check(copied, VERSION).problems
    assert len(problems) == 1
    assert "points the tables claim" in problems[0]


def test_wrong_calibration(copied, edit):
    def aim_up(records):
        for record in records:
            if record["camera_intrinsic"]:
                record["camera_intrinsic"][1][2] = 5000.0  # principal point far below the picture

    edit("calibrated_sensor", aim_up)
    problems = check(copied, VERSION).problems
    assert len(problems) > 20
    assert all("in no camera's picture" in problem for problem in problems)


def test_impossible_box(copied, edit):
    edit("sample_annotation", lambda records: records[0].update(size=[1.0, -2.0, 1.0]))
    problems = check(copied, VERSION).problems
    assert len(problems) == 1
    assert "sizes above 0" in problems[0]


def test_tables_that_do_not_open(copied, tmp_path):
    (copied / VERSION / "log.json").unlink()
    assert "table missing" in check(copied, VERSION).problems[0]
    (copied / VERSION / "scene.json").write_text("{")
    assert check(copied, VERSION).problems
    assert "no nuScenes tables" in check(tmp_path / "nothing", VERSION).problems[0]


def test_scene_of_no_split(copied, edit):
    edit("scene", lambda records: records[0].update(name="scene-9999"))
    assert any("scene-9999 belongs to no split" in problem for problem in check(copied, VERSION).problems)


@pytest.fixture
def folder(dataset, tmp_path):
    out = tmp_path / "shards"
    write_shards(dataset, VERSION, "mini_val", out)
    return out


def test_sound_shards(folder):
    report = check(folder)
    assert report.ok, report.problems
    assert report.counts["frames"] == 3


def test_one_flipped_bit_in_shards(folder):
    path = folder / "mini_val-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "checksum differs" in check(folder).problems[0]


def test_shards_without_manifest(folder):
    (folder / "mini_val.json").unlink()
    assert "no manifest" in check(folder).problems[0]


def test_manifest_that_lies(folder):
    path = folder / "mini_val.json"
    manifest = json.loads(path.read_text())
    manifest["tokens"].pop()
    path.write_text(json.dumps(manifest))
    assert "not a manifest" in check(folder).problems[0]
