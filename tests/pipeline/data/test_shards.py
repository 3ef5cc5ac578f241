import dataclasses
import json
import pickle

import numpy as np
import pytest

from pipeline.data import shards
from pipeline.data.loader import FileSource, Reading
from pipeline.data.sample import DataError
from pipeline.data.shards import ShardSource, write_shards
from pipeline.data.tables import read_frames

VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    for split in ("mini_train", "mini_val"):
        write_shards(dataset, VERSION, split, out)
    return out


def assert_same(one, other):
    """Equal bit for bit, NaNs included."""
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), field.name
        else:
            assert a == b, field.name


@pytest.mark.parametrize("split", ["mini_train", "mini_val"])
def test_shards_give_what_files_give(dataset, folder, split):
    files, source = FileSource(read_frames(dataset, VERSION, split)), ShardSource(folder, split)
    assert len(source) == len(files) == 3
    assert list(source.tokens) == list(files.tokens)
    assert list(source.scenes) == list(files.scenes)
    for index in (2, 0, 1, -1):
        assert_same(source[index], files[index % 3])
    with pytest.raises(IndexError):
        source[3]


def test_records_survive(dataset, folder):
    source = ShardSource(folder, "mini_val", Reading(min_points=0))
    for got, record in zip(source.records(), read_frames(dataset, VERSION, "mini_val"), strict=True):
        same = dataclasses.replace(got, image_paths=record.image_paths, lidar_path=record.lidar_path)
        assert_same(same, record)


def test_many_groups_and_files(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROWS_PER_FILE", 2)
    monkeypatch.setattr(shards, "ROWS_PER_GROUP", 1)
    write_shards(dataset, VERSION, "mini_val", tmp_path)
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    files, source = FileSource(read_frames(dataset, VERSION, "mini_val")), ShardSource(tmp_path, "mini_val")
    for index in (1, 2, 0):
        assert_same(source[index], files[index])


def test_a_source_can_be_sent_to_another_process(folder):
    source = ShardSource(folder, "mini_val")
    first = source[0]
    assert_same(pickle.loads(pickle.dumps(source))[0], first)


def test_a_uri_is_a_folder(folder):
    assert_same(ShardSource(folder.as_uri(), "mini_val")[1], ShardSource(folder, "mini_val")[1])


def test_nothing_half_done_is_read(dataset, copied, tmp_path):
    out = tmp_path / "out"
    record = read_frames(copied, VERSION, "mini_val")[2]
    record.image_paths[0].write_bytes(b"")
    with pytest.raises(DataError, match="CAM_FRONT"):
        write_shards(copied, VERSION, "mini_val", out)
    with pytest.raises(DataError, match="no finished shards of split 'mini_val'"):
        ShardSource(out, "mini_val")
    write_shards(dataset, VERSION, "mini_val", out)  # goes over the remains
    assert len(ShardSource(out, "mini_val")) == 3


def test_finished_shards_are_not_written_over(dataset, folder):
    with pytest.raises(DataError, match="is there already"):
        write_shards(dataset, VERSION, "mini_val", folder)


def test_output_that_is_a_file(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_shards(dataset, VERSION, "mini_val", tmp_path / "file" / "shards")


def test_no_such_store(dataset):
    with pytest.raises(DataError, match="no store that pyarrow can open"):
        write_shards(dataset, VERSION, "mini_val", "gopher://somewhere/shards")


def test_file_cut_short(dataset, tmp_path):
    write_shards(dataset, VERSION, "mini_val", tmp_path)
    path = tmp_path / "mini_val-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"expected \d+ bytes, found \d+"):
        ShardSource(tmp_path, "mini_val")
    path.unlink()
    with pytest.raises(DataError, match="found no file"):
        ShardSource(tmp_path, "mini_val")


def test_foreign_manifest(folder, tmp_path):
    manifest = json.loads((folder / "mini_val.json").read_text())
    (tmp_path / "mini_val.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(DataError, match="not a manifest of format 1"):
        ShardSource(tmp_path, "mini_val")
    (tmp_path / "mini_val.json").write_text("[1, 2")
    with pytest.raises(DataError, match="not a manifest"):
        ShardSource(tmp_path, "mini_val")


def test_damage_inside_a_file(dataset, tmp_path):
    write_shards(dataset, VERSION, "mini_val", tmp_path)
    path = tmp_path / "mini_val-00000.parquet"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DataError, match="cannot be read"):
        ShardSource(tmp_path, "mini_val")[0]
