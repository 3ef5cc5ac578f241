"""No name in tables, infos or databases leads out of the dataset it belongs to."""

import pickle
from pathlib import Path

import pytest

from pipeline.data.augmentation.object_database import InfoDatabase
from pipeline.data.formats.decoding import load_sample
from pipeline.data.formats.infos.reader import read_infos
from pipeline.data.formats.infos.writer import write_infos
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.safe_paths import inside
from pipeline.data.sample import DataError

VERSION = "v1.0-mini"
OUT = "names the file .*expected a path inside .* without"


@pytest.mark.parametrize("name", ["../x.jpg", "samples/../../x.jpg", "/etc/passwd", "", ".", "a\0b"])
def test_names_that_lead_out(tmp_path, name):
    with pytest.raises(DataError, match=OUT):
        inside(tmp_path, name, "a table")


def test_names_that_do_not(tmp_path):
    for name in ("samples/CAM_FRONT/x.jpg", "./samples/..x.jpg", "x"):
        assert inside(tmp_path, name, "a table").is_relative_to(tmp_path)


@pytest.mark.parametrize("channel", ["CAM_BACK", "LIDAR_TOP"])
def test_tables(copied, edit, channel):
    def lead_out(records):
        for record in records:
            if f"/{channel}/" in record["filename"]:
                record["filename"] = "../../../etc/passwd"

    edit("sample_data", lead_out)
    with pytest.raises(DataError, match=OUT):
        read_frames(copied, VERSION, "mini_val")


@pytest.mark.parametrize("what", ["img_path", "lidar_path"])
def test_infos(dataset, tmp_path, what):
    path = tmp_path / "infos.pkl"
    write_infos(read_frames(dataset, VERSION, "mini_val"), path, VERSION)
    content = pickle.loads(path.read_bytes())
    frame = content["data_list"][0]
    (frame["images"]["CAM_BACK"] if what == "img_path" else frame["lidar_points"])[what] = "/etc/passwd"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=OUT):
        read_infos(path, dataset)


def test_object_databases(tmp_path):
    info = {"box3d_lidar": [0, 0, 0, 1, 1, 1, 0], "path": "../secret.bin", "num_points_in_gt": 1}
    (tmp_path / "dbinfos.pkl").write_bytes(pickle.dumps({"car": [info]}))
    with pytest.raises(DataError, match=OUT):
        InfoDatabase(tmp_path / "dbinfos.pkl", tmp_path).points(0)


def test_a_link_out_of_the_dataset_is_not_followed(copied, tmp_path):
    record = read_frames(copied, VERSION, "mini_val")[0]
    secret = tmp_path / "secret.jpg"
    record.image_paths[2].rename(secret)
    record.image_paths[2].symlink_to(secret)
    with pytest.raises(DataError, match=r"is a link to \S+secret\.jpg, outside the dataset"):
        load_sample(record)


def test_a_folder_that_is_a_link_out_is_not_followed(copied, tmp_path):
    away = tmp_path / "away"
    (copied / "samples/CAM_BACK").rename(away)
    (copied / "samples/CAM_BACK").symlink_to(away)
    with pytest.raises(DataError, match="outside the dataset"):
        read_frames(copied, VERSION, "mini_val")


def test_links_within_the_dataset_and_of_samples_itself_are_followed(copied, tmp_path):
    record = read_frames(copied, VERSION, "mini_val")[0]
    moved = record.image_paths[2].rename(copied / "samples" / "moved.jpg")
    record.image_paths[2].symlink_to(moved)
    before = load_sample(record)
    other = tmp_path / "other"  # a new root, because the folders of the first are remembered
    copied.rename(other)
    (other / "samples").rename(tmp_path / "on_another_disk")
    (other / "samples").symlink_to(tmp_path / "on_another_disk")
    Path(other / "samples/CAM_FRONT_LEFT" / record.image_paths[2].name).unlink()
    (tmp_path / "on_another_disk/moved.jpg").rename(
        tmp_path / "on_another_disk/CAM_FRONT_LEFT" / record.image_paths[2].name
    )
    assert (load_sample(read_frames(other, VERSION, "mini_val")[0]).images == before.images).all()
