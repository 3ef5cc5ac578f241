"""Any change to tables, an info file or a manifest gives the frames that it now describes, or one sentence.

What is accepted is compared with a plain reading of the changed file. `make test-all` tries more of them.
"""

import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from pipeline.config.settings import CLASSES
from pipeline.data.formats.infos.reader import read_infos
from pipeline.data.formats.infos.version_1_1 import MMDET3D_CLASSES
from pipeline.data.formats.infos.writer import write_infos
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.formats.shard_writer import write_shards
from pipeline.data.formats.shards import ShardSource
from pipeline.data.synthetic import generate
from tests.bad_inputs.fuzzing import VALUES, answer, changed, content, few_and_many, run, spoilt
from tests.bad_inputs.place import SPLIT, VERSION
from tests.pipeline.data.formats.spoilt import converter_infos

ARRAYS = st.sampled_from(
    [np.zeros((3, 3)), np.full(4, np.nan), np.float32(2), np.array(["car"]), np.array([]), np.arange(7), b"x"]
)
PICKLED = VALUES | ARRAYS
LONGEST = 1200
TABLES = ("scene", "sample", "sample_data", "sample_annotation", "calibrated_sensor", "ego_pose", "category")


@pytest.fixture(scope="module")
def good(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return made_once("fuzzed", _make)


def _make(folder: Path) -> None:
    generate(folder / "data", 3, frames_per_scene=2, scenes_per_split={SPLIT: 1}, workers=1)
    write_infos(read_frames(folder / "data", VERSION, SPLIT), folder / "1.1.pkl", VERSION)
    old = converter_infos(folder / "data", folder / "1.0.pkl")
    for info in old["infos"]:
        info["sweeps"] = info["sweeps"][:1]
    (folder / "1.0.pkl").write_bytes(pickle.dumps(old))
    write_shards(folder / "data", VERSION, SPLIT, folder / "shards")


@few_and_many(100)
@pytest.mark.parametrize("form", ["1.0", "1.1"])
def test_info_files(number: int, form: str, good: Path, tmp_path: Path) -> None:
    path, plain = tmp_path / "x.pkl", pickle.loads((good / f"{form}.pkl").read_bytes())

    def check(draw: Any) -> None:
        made = changed(draw, plain, PICKLED) if draw(st.integers(0, 4)) else plain
        data = pickle.dumps(made)
        whole = draw(st.integers(0, 3))
        path.write_bytes(data if whole else spoilt(draw, data))
        records = answer(partial(read_infos, path, good / "data"), LONGEST)
        if records is not None and whole:
            frames = made["infos" if form == "1.0" else "data_list"]
            assert [record.token for record in records] == [
                str(frame.get("token", frame.get("sample_idx")))[:200] for frame in frames
            ]
            for record, frame in zip(records, frames, strict=True):
                rows = boxes_1_0(frame) if form == "1.0" else boxes_1_1(frame, made)
                np.testing.assert_array_equal(record.boxes, np.array(rows, np.float32).reshape(-1, 9))

    run(number, check)


def boxes_1_0(frame: dict[str, Any]) -> list[list[float]]:
    """The boxes of the ten classes, as the file has them."""
    names = np.ravel(frame.get("gt_names", ()))
    speeds = frame.get("gt_velocity")
    speeds = np.full((len(names), 2), np.nan) if speeds is None else np.reshape(speeds, (-1, 2))
    return [
        [*frame["gt_boxes"][i], *speeds[i]] for i, name in enumerate(names) if str(name) in CLASSES
    ]  # fmt: skip


def boxes_1_1(frame: dict[str, Any], content: dict[str, Any]) -> list[list[float]]:
    """The boxes of the ten classes, as the file has them."""
    default = {name: label for label, name in enumerate(MMDET3D_CLASSES)}
    named = content.get("metainfo", {}).get("categories", default)
    labels = {label for name, label in named.items() if name in CLASSES and label != -1}
    return [
        [*box["bbox_3d"], *box.get("velocity", (np.nan, np.nan))]
        for box in frame.get("instances") or ()
        if box["bbox_label_3d"] in labels
    ]


@few_and_many(100)
def test_manifests(number: int, good: Path, tmp_path: Path) -> None:
    for path in (good / "shards").iterdir():
        (tmp_path / path.name).symlink_to(path)
    for path in tmp_path.glob("*.parquet"):
        path.unlink()
        path.hardlink_to(good / "shards" / path.name)
    manifest = tmp_path / f"{SPLIT}.json"
    plain = json.loads(manifest.read_text())
    manifest.unlink()

    def check(draw: Any) -> None:
        manifest.write_bytes(content(draw, plain))
        found = answer(lambda: [sample.token for sample in ShardSource(tmp_path, SPLIT)], LONGEST)
        if found is not None:
            assert found == json.loads(manifest.read_bytes())["tokens"] == plain["tokens"]

    run(number, check)


@few_and_many(30)
@pytest.mark.parametrize("name", TABLES)
def test_tables(number: int, name: str, good: Path, tmp_path: Path) -> None:
    (tmp_path / VERSION).mkdir()
    for path in (good / "data" / VERSION).iterdir():
        (tmp_path / VERSION / path.name).symlink_to(path)
    for folder in ("samples", "maps"):
        (tmp_path / folder).symlink_to(good / "data" / folder)
    path = tmp_path / VERSION / f"{name}.json"
    plain = json.loads(path.read_text())
    path.unlink()

    def check(draw: Any) -> None:
        path.write_bytes(content(draw, plain))
        records = answer(lambda: read_frames(tmp_path, VERSION, SPLIT), LONGEST)
        if records is not None:
            tables = {n: json.loads((tmp_path / VERSION / f"{n}.json").read_bytes()) for n in TABLES}
            said = described(tables)
            assert [record.token for record in records] == [token for token, _ in said]
            for record, (_, position) in zip(records, said, strict=True):
                np.testing.assert_array_equal(record.ego2global[:3, 3], np.array(position, np.float64))

    run(number, check)


def described(tables: dict[str, list[dict[str, Any]]]) -> list[tuple[str, list[float]]]:
    """Token of every key frame in order, and where the vehicle was, by a plain reading of the tables."""
    samples = {sample["token"]: sample for sample in tables["sample"]}
    poses = {pose["token"]: pose for pose in tables["ego_pose"]}
    scans = {
        shot["sample_token"]: shot
        for shot in tables["sample_data"]
        if shot["is_key_frame"] and "LIDAR_TOP" in shot["filename"]
    }
    found = []
    for scene in tables["scene"]:
        token = scene["first_sample_token"]
        while token:
            found.append((token, poses[scans[token]["ego_pose_token"]]["translation"]))
            token = samples[token]["next"]
    return found
