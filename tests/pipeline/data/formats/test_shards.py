"""Shards: what files give, bit for bit; written in parts that survive a killed writer; chosen unread."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

from pipeline.data.formats import shard_writer, shards
from pipeline.data.formats.file_source import FileSource
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.formats.shard_manifest import checksum, read_manifest
from pipeline.data.formats.shard_writer import write_shards
from pipeline.data.formats.shards import ShardSource
from pipeline.data.sample import DataError
from pipeline.data.source import Reading

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
    source = ShardSource(folder, "mini_val", Reading(valid_only=False))
    for got, record in zip(source.records(), read_frames(dataset, VERSION, "mini_val"), strict=True):
        same = dataclasses.replace(
            got, image_paths=record.image_paths, lidar_path=record.lidar_path, root=record.root
        )
        assert_same(same, record)


def test_many_groups_and_files(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "ROWS_PER_FILE", 2)
    monkeypatch.setattr(shard_writer, "GROUP_BYTES", 1)
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
    with pytest.raises(DataError, match="not a manifest of format 3"):
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


def keyed(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.parquet")}


def stop_after(count):
    """Write parts as usual and stop, as a killed process would, when some are done."""

    def run(parts):
        for part in parts[:count]:
            yield shard_writer.write_part(part)
        raise KeyboardInterrupt

    return run


def test_a_writer_that_goes_on_keeps_what_is_done(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "ROWS_PER_FILE", 1)
    with pytest.raises(KeyboardInterrupt):
        write_shards(dataset, VERSION, "mini_val", tmp_path, run=stop_after(2))
    kept = keyed(tmp_path)
    assert len(kept) == 2
    (tmp_path / "mini_val-00002.parquet.12345678.part").write_bytes(b"half")
    with pytest.raises(DataError, match="no finished shards"):
        ShardSource(tmp_path, "mini_val")
    write_shards(dataset, VERSION, "mini_val", tmp_path)
    assert keyed(tmp_path).items() > kept.items(), "finished files were not written anew"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"mini_val-0000{i}.parquet" for i in range(3)),
        "mini_val.json",
    ]
    files, source = FileSource(read_frames(dataset, VERSION, "mini_val")), ShardSource(tmp_path, "mini_val")
    assert_same(source[2], files[2])


@pytest.mark.parametrize("damage", ["flipped", "cut", "changed source", "other type"])
def test_what_is_no_longer_right_is_written_anew(copied, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(shard_writer, "ROWS_PER_FILE", 1)
    out, points = tmp_path / "out", "float32"
    with pytest.raises(KeyboardInterrupt):
        write_shards(copied, VERSION, "mini_val", out, run=stop_after(2))
    kept, path = keyed(out), out / "mini_val-00001.parquet"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "changed source":
        os.utime(read_frames(copied, VERSION, "mini_val")[1].image_paths[3], (1, 1))
    else:
        points = "float16"
    write_shards(copied, VERSION, "mini_val", out, points=points)
    found = keyed(out)
    assert found["mini_val-00001.parquet"] != kept["mini_val-00001.parquet"]
    assert (found["mini_val-00000.parquet"] == kept["mini_val-00000.parquet"]) == (points == "float32")
    for entry in read_manifest(out, "mini_val")["files"]:
        assert checksum(out, entry["name"]) == entry["sha256"]


KILLED = """
import sys, os, signal
from pathlib import Path
from pipeline.data.formats import shard_writer
shard_writer.ROWS_PER_FILE = 1
begun = []
row = shard_writer.to_row
def slow(record, *how):
    begun.append(record)
    if len(begun) == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # in the middle of the third file
    return row(record, *how)
shard_writer.to_row = slow
shard_writer.write_shards(Path(sys.argv[1]), "v1.0-mini", "mini_val", sys.argv[2])
"""


def test_a_killed_writer(dataset, tmp_path, monkeypatch):
    words = [sys.executable, "-c", KILLED, str(dataset), str(tmp_path)]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    kept = keyed(tmp_path)
    assert len(kept) == 2
    assert list(tmp_path.glob("*.part")), "it died while it wrote"
    monkeypatch.setattr(shard_writer, "ROWS_PER_FILE", 1)
    write_shards(dataset, VERSION, "mini_val", tmp_path)
    assert keyed(tmp_path).items() > kept.items()
    assert not list(tmp_path.glob("*.part"))


ON_RAY = """
import sys
from pathlib import Path
from experiments.cluster.shard_tasks import ray_writers
from pipeline.data.formats import shard_writer
shard_writer.ROWS_PER_FILE = 1
good, bad, out = map(Path, sys.argv[1:])
with ray_writers(2) as run:
    shard_writer.write_shards(good, "v1.0-mini", "mini_val", out / "many", run=run)
    try:
        shard_writer.write_shards(bad, "v1.0-mini", "mini_val", out / "bad", run=run)
    except ValueError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.slow(seconds=20)
@pytest.mark.cluster
def test_tasks_of_ray_write_the_same_bytes(dataset, copied, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "ROWS_PER_FILE", 1)
    write_shards(dataset, VERSION, "mini_val", tmp_path / "one")
    read_frames(copied, VERSION, "mini_val")[1].lidar_path.write_bytes(b"12345")
    words = [sys.executable, "-c", ON_RAY, str(dataset), str(copied), str(tmp_path)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "bin: 5 bytes is no whole number of points" in done.stdout.splitlines()[-1]
    assert done.stdout.splitlines()[-1].startswith("DataError /"), "the task's sentence, not Ray's trace"
    assert len(list((tmp_path / "many").iterdir())) == 4
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "many" / path.name).read_bytes(), path.name


def test_float16_costs_half_a_step_of_its_grid(dataset, tmp_path):
    write_shards(dataset, VERSION, "mini_val", tmp_path, points="float16")
    exact = FileSource(read_frames(dataset, VERSION, "mini_val"))[0].points
    halved = ShardSource(tmp_path, "mini_val")[0].points
    assert halved.dtype == np.float32
    error = np.abs(halved - exact)
    # 11 bits: a number in [2^k, 2^(k+1)) is off by at most 2^(k-11); below 2^-14 by 2^-25
    assert (
        error <= np.maximum(2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), 1e-9))) - 11), 2.0**-25)
    ).all()
    assert 0 < error[:, :3].max() < 0.032, "metres, within 128 m"
    np.testing.assert_array_equal(halved[:, 3], exact[:, 3])  # intensities are whole numbers up to 255


def test_a_number_beyond_float16(copied, tmp_path):
    path = read_frames(copied, VERSION, "mini_val")[0].lidar_path
    points = np.fromfile(path, "<f4")
    points[0] = 1e5
    points.tofile(path)
    with pytest.raises(DataError, match="holds a 100000, and float16 ends at 65504; use float32"):
        write_shards(copied, VERSION, "mini_val", tmp_path / "out", points="float16")


@pytest.fixture(scope="module")
def single(dataset, tmp_path_factory):
    """Shards with one frame a row group."""
    out = tmp_path_factory.mktemp("single")
    kept, shard_writer.GROUP_BYTES = shard_writer.GROUP_BYTES, 1
    write_shards(dataset, VERSION, "mini_val", out)
    shard_writer.GROUP_BYTES = kept
    return out


def test_frames_are_chosen_by_statistics_unread(dataset, single, monkeypatch):
    records = read_frames(dataset, VERSION, "mini_val")
    last = records[2].timestamp_us
    read = []
    rows = shards._rows
    monkeypatch.setattr(shards, "_rows", lambda part, wanted: read.append(part) or rows(part, wanted))
    source = ShardSource(single, "mini_val", where=[("timestamp_us", ">=", last)])
    assert list(source.tokens) == [records[2].token]
    assert len(read) == 1, "the other row groups are ruled out by their statistics"
    assert_same(source[0], FileSource(records)[2])
    few = min(len(record.boxes) for record in records)
    wanted = [record.token for record in records if len(record.boxes) > few]
    chosen = ShardSource(
        single, "mini_val", where=[("num_boxes", ">", few), ("scene", "==", records[0].scene)]
    )
    assert list(chosen.tokens) == wanted
    assert list(chosen.labels) == [
        FileSource(records).labels[i] for i, r in enumerate(records) if r.token in wanted
    ]
    assert len(ShardSource(single, "mini_val", where=[("scene", "==", "scene-none")])) == 0


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ([("weather", "==", "fog")], r"no statistics of \['weather'\]; frames are chosen by scene, "),
        ([("num_boxes", ">", "many")], "no frames by"),
        ([("num_boxes", "about", 3)], "no frames by"),
    ],
)
def test_conditions_that_cannot_be_met(single, where, sentence):
    with pytest.raises(DataError, match=sentence):
        ShardSource(single, "mini_val", where=where)


def test_blocks_are_row_groups_where_a_buffer_asks(folder, single):
    assert ShardSource(single, "mini_val").blocks == ()
    assert ShardSource(single, "mini_val", Reading(buffer=2)).blocks == (1, 1, 1)
    assert sum(ShardSource(folder, "mini_val", Reading(buffer=2)).blocks) == 3


@pytest.mark.parametrize("name", ["../mini_val-00000.parquet", "/etc/passwd", "mini_val-00000.parquet/../x"])
def test_a_manifest_cannot_lead_out_of_its_folder(folder, tmp_path, name):
    manifest = json.loads((folder / "mini_val.json").read_text())
    manifest["files"][0]["name"] = name
    (tmp_path / "mini_val.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"its manifest names the file .* is not ours, do not use it"):
        ShardSource(tmp_path, "mini_val")


def test_neither_can_a_split_or_a_link(folder, tmp_path):
    with pytest.raises(DataError, match=r"'\.\./mini_val' is no name of a split"):
        ShardSource(folder / "below", "../mini_val")
    (tmp_path / "mini_val.json").write_bytes((folder / "mini_val.json").read_bytes())
    (tmp_path / "mini_val-00000.parquet").symlink_to(folder / "mini_val-00000.parquet")
    with pytest.raises(DataError, match="is a link, and shards are read from their folder"):
        ShardSource(tmp_path, "mini_val")
