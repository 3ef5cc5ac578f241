"""A generated dataset as people have them: radar-only boxes, a missing camera, sweeps of four columns."""

import importlib.util
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from nuscenes.nuscenes import NuScenes

from pipeline.data.sample import CAMERAS
from pipeline.data.synthetic import generate
from pipeline.data.synthetic.sensor_rig import Rig

VERSION = "v1.0-mini"
RADAR_ONLY, WITHOUT_CAMERA, WITHOUT_BOXES = range(3)
"""Which frame has which fault."""


def change(root: Path, table: str, how: Callable[[list[dict[str, Any]]], Any]) -> Any:
    """Change a table in place; return what ``how`` returns."""
    path = root / VERSION / f"{table}.json"
    records = json.loads(path.read_text())
    found = how(records)
    path.write_text(json.dumps(records))
    return found


def make_spoilt(root: Path) -> None:
    """Generate three frames with ten sweeps each, and spoil each in its way."""
    rig = Rig("small", 160, 90, 9)
    generate(root, 4, frames_per_scene=3, scenes_per_split={"mini_train": 1}, workers=1, rig=rig)
    change(root, "sample_data", lambda records: _four_columns(root, records))
    tokens = [sample["token"] for sample in json.loads((root / VERSION / "sample.json").read_text())]
    change(root, "sample_annotation", lambda records: _radar_only(records, tokens[RADAR_ONLY]))
    _without_boxes(root, tokens[WITHOUT_BOXES])
    for shot in json.loads((root / VERSION / "sample_data.json").read_text()):
        if shot["sample_token"] == tokens[WITHOUT_CAMERA] and f"/{CAMERAS[3]}/" in shot["filename"]:
            (root / shot["filename"]).unlink()


def _four_columns(root: Path, records: list[dict[str, Any]]) -> None:
    """Take ring indices from all scans but key frames, and say so."""
    for record in records:
        if record["filename"].endswith(".pcd.bin") and not record["is_key_frame"]:
            path = root / record["filename"]
            np.fromfile(path, "<f4").reshape(-1, 5)[:, :4].tofile(path)
            record["num_pts_feats"] = 4


def _radar_only(records: list[dict[str, Any]], token: str) -> None:
    """Leave the first box of a frame to the radar, the second to no sensor."""
    first, second = [record for record in records if record["sample_token"] == token][:2]
    first.update(num_lidar_pts=0, num_radar_pts=5)
    second.update(num_lidar_pts=0, num_radar_pts=0)


def _without_boxes(root: Path, token: str) -> None:
    """Take all boxes from the last frame of a scene."""

    def remove(records: list[dict[str, Any]]) -> set[str]:
        gone = {record["token"] for record in records if record["sample_token"] == token}
        records[:] = [record for record in records if record["token"] not in gone]
        for record in records:
            record["next"] = "" if record["next"] in gone else record["next"]
        return {record["instance_token"] for record in records}

    left = change(root, "sample_annotation", remove)

    def keep(records: list[dict[str, Any]]) -> None:
        records[:] = [record for record in records if record["token"] in left]

    change(root, "instance", keep)


def converter_infos(root: Path, path: Path) -> dict[str, Any]:
    """Write an info file of format 1.0 with mmdet3d's own converter; return its content."""
    import pipeline.detector  # noqa: F401  it lets mmdet3d be imported without compiled ops

    import mmdet3d  # isort: skip

    place = Path(mmdet3d.__file__).parent / ".mim/tools/dataset_converters/nuscenes_converter.py"
    spec = importlib.util.spec_from_file_location("nuscenes_converter", place)
    converter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(converter)
    # mmengine's progress bar writes to the stdout of the test that imported it first.
    converter.mmengine = SimpleNamespace(track_iter_progress=iter, check_file_exist=lambda path: None)
    nusc = NuScenes(VERSION, str(root), verbose=False)
    scenes = {scene["token"]: scene["name"] for scene in nusc.scene}
    infos, _ = converter._fill_trainval_infos(nusc, set(scenes), set(), max_sweeps=10)
    for info in infos:
        info["scene_name"] = scenes[nusc.get("sample", info["token"])["scene_token"]]
        for sweep in info["sweeps"]:
            sweep["num_features"] = nusc.get("sample_data", sweep["sample_data_token"]).get(
                "num_pts_feats", 5
            )
    content = {"infos": infos, "metadata": {"version": VERSION}}
    path.write_bytes(pickle.dumps(content))
    return content
