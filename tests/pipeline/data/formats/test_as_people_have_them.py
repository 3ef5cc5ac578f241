"""Values that datasets of others have, and what becomes of them: widths of points, classes, missing keys."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.settings import CLASSES
from pipeline.data.formats.infos.reader import read_infos
from pipeline.data.formats.infos.writer import write_infos
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.formats.open import open_source
from pipeline.data.formats.shard_writer import write_shards
from tests.pipeline.data.formats.spoilt import converter_infos

VERSION, SPLIT = "v1.0-mini", "mini_train"


def plain(path: Path, change: Callable[[Any], object]) -> Path:
    """Change a pickle in place."""
    content = pickle.loads(path.read_bytes())
    change(content)
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize("width", [4, 5, 6])
def test_points_have_the_width_that_is_stated(copied: Path, width: int) -> None:
    """Oracle: numpy on the file. Through tables, both kinds of info files, and shards."""
    rng = np.random.default_rng(0)
    clouds = {}
    for path in (copied / "samples/LIDAR_TOP").iterdir():
        clouds[path.name] = rng.uniform(2, 9, (1000, width)).astype("<f4")
        clouds[path.name].tofile(path)
    table = copied / VERSION / "sample_data.json"
    records = json.loads(table.read_text())
    for record in records:
        record["num_pts_feats"] = width
    table.write_text(json.dumps(records))
    frames = read_frames(copied, VERSION, SPLIT)
    write_infos(frames, copied / "new.pkl", VERSION)
    converter_infos(copied, copied / "old.pkl")
    plain(copied / "old.pkl", lambda content: [f.update(num_features=width) for f in content["infos"]])
    write_shards(copied, VERSION, SPLIT, copied / "shards")
    for place in (copied, copied / "new.pkl", copied / "old.pkl", copied / "shards"):
        points = open_source(place, VERSION, SPLIT)[0].points
        assert len(points) == 1000 * (1 + len(frames[0].sweeps))
        np.testing.assert_array_equal(points[:1000, :4], clouds[frames[0].lidar_path.name][:, :4])
        assert (points[:1000, 4] == 0).all()


def test_classes_outside_the_ten_are_named_with_counts(dataset: Path, tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "x.pkl"
    write_infos(read_frames(dataset, VERSION, SPLIT), path, VERSION)
    before = read_infos(path, dataset)

    def rename(content: dict[str, Any]) -> None:
        content["metainfo"]["categories"] |= {"animal": 10, "debris": 11}
        for label, box in zip((10, 10, 11), content["data_list"][0]["instances"], strict=False):
            box["bbox_label_3d"] = label

    after = read_infos(plain(path, rename), dataset)
    assert "x.pkl: boxes of classes outside the ten are left out: animal 2, debris 1" in caplog.text
    np.testing.assert_array_equal(after[0].boxes, before[0].boxes[3:])
    assert [record.token for record in after] == [record.token for record in before]


OPTIONAL = (
    ("instances",), ("lidar_sweeps",), ("ego2global",), ("lidar_points", "lidar2ego"), ("token",),
    ("lidar_points", "num_pts_feats"), ("instances", 0, "velocity"), ("instances", 0, "num_lidar_pts"),
    ("instances", 0, "bbox_3d_isvalid"), ("scene_name",),
)  # fmt: skip


@pytest.mark.parametrize("key", OPTIONAL, ids=lambda key: ".".join(map(str, key)))
def test_a_key_that_mmdet3d_does_not_ask_for_may_be_missing(
    dataset: Path, tmp_path: Path, key: tuple[Any, ...]
) -> None:
    path = tmp_path / "x.pkl"
    write_infos(read_frames(dataset, VERSION, SPLIT), path, VERSION)
    before = read_infos(path, dataset)[0]

    def remove(content: dict[str, Any]) -> None:
        holder = content["data_list"][0]
        for step in key[:-1]:
            holder = holder[step]
        del holder[key[-1]]

    after = read_infos(plain(path, remove), dataset)[0]
    np.testing.assert_array_equal(after.lidar2cam, before.lidar2cam)
    assert after.lidar_path == before.lidar_path
    if key[-1] == "velocity":
        assert np.isnan(after.boxes[0, 7:]).all()
    expected = before.boxes[:0] if key[-1] == "instances" else before.boxes
    np.testing.assert_array_equal(after.boxes[:, :7], expected[:, :7])


@pytest.mark.parametrize(("lidar", "radar", "kept"), [(0, 5, True), (5, 0, True), (0, 0, False)])
def test_a_box_counts_by_its_lidar_or_radar_points(
    copied: Path, edit: Any, lidar: int, radar: int, kept: bool
) -> None:
    """In tables, in what `data infos` writes, and in what mmdet3d's converter writes."""
    edit("sample_annotation", lambda made: [a.update(num_lidar_pts=lidar, num_radar_pts=radar) for a in made])
    write_infos(read_frames(copied, VERSION, SPLIT), copied / "new.pkl", VERSION)
    written = pickle.loads((copied / "new.pkl").read_bytes())["data_list"][0]["instances"]
    assert {box["bbox_3d_isvalid"] for box in written} == {kept}
    converter_infos(copied, copied / "old.pkl")
    for place in (copied, copied / "new.pkl", copied / "old.pkl"):
        source = open_source(place, VERSION, SPLIT)
        assert (len(source[0].boxes) > 0) == kept
        assert all(0 <= label < len(CLASSES) for label in source[0].labels)
