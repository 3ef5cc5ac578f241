import json
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.constants import DETECTION_NAMES
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes

from pipeline.data.formats.decoding import load_points
from pipeline.data.formats.nuscenes_tables import TABLES, read_frames
from pipeline.data.formats.verify import points_in_boxes
from pipeline.data.sample import CAMERAS, DataError
from pipeline.data.synthetic import generate
from pipeline.data.synthetic.object_classes import KINDS
from pipeline.data.synthetic.sensor_rig import FULL, MINI, Rig, cameras

VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def nusc(dataset):
    return NuScenes(VERSION, str(dataset), verbose=False)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_with_any_number_of_workers(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        generate(
            tmp_path / name,
            5,
            frames_per_scene=1,
            scenes_per_split={"mini_train": 1, "mini_val": 1},
            workers=workers,
        )
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_another_seed_is_another_dataset(dataset, tmp_path):
    generate(tmp_path, 6, frames_per_scene=1, scenes_per_split={"mini_val": 1}, workers=1)
    one, other = contents(dataset), contents(tmp_path)
    shared = {name for name in one.keys() & other.keys() if name.startswith("samples")}
    assert len(shared) == 7
    assert all(one[name] != other[name] for name in shared)
    tokens = [{r["token"] for r in json.loads(made[f"{VERSION}/sample.json"])} for made in (one, other)]
    assert not tokens[0] & tokens[1]


def test_layout_is_that_of_nuscenes(dataset):
    assert sorted(path.stem for path in (dataset / VERSION).iterdir()) == sorted(TABLES)
    for channel in (*CAMERAS, "LIDAR_TOP"):
        assert len(list((dataset / "samples" / channel).iterdir())) == 6
        assert (dataset / "sweeps" / channel).is_dir()
    for record in json.loads((dataset / VERSION / "sample_data.json").read_text()):
        assert (dataset / record["filename"]).is_file()


def test_devkit_walks_every_chain(nusc):
    for scene in nusc.scene:
        token, times = scene["first_sample_token"], []
        while token:
            sample = nusc.get("sample", token)
            times.append(sample["timestamp"])
            token = sample["next"]
        assert len(times) == scene["nbr_samples"] == 3
        assert set(np.diff(times)) == {500_000}
    for instance in nusc.instance:
        token, count = instance["first_annotation_token"], 0
        while token:
            annotation = nusc.get("sample_annotation", token)
            assert annotation["instance_token"] == instance["token"]
            last, token, count = token, annotation["next"], count + 1
        assert (last, count) == (instance["last_annotation_token"], instance["nbr_annotations"])


def test_moving_things_move_as_fast_as_they_should(nusc):
    moving = standing = 0
    for annotation in nusc.sample_annotation:
        speed = np.linalg.norm(nusc.box_velocity(annotation["token"])[:2])
        names = [nusc.get("attribute", token)["name"] for token in annotation["attribute_tokens"]]
        if np.isnan(speed) or not names:
            continue
        if names[0] in ("vehicle.moving", "cycle.with_rider", "pedestrian.moving"):
            assert 0.7 < speed < 10
            moving += 1
        else:
            assert speed < 1e-6  # positions are float64 of some hundred metres
            standing += 1
    assert min(moving, standing) > 20


def test_every_class_is_there_in_every_scene(nusc):
    for scene in nusc.scene:
        held = set()
        for sample in nusc.sample:
            if sample["scene_token"] == scene["token"]:
                held |= {
                    category_to_detection_name(nusc.get("sample_annotation", ann)["category_name"])
                    for ann in sample["anns"]
                }
        assert held >= set(DETECTION_NAMES)


def test_ground_truth_scores_as_perfect(nusc, tmp_path):
    """The official metric gives its own ground truth full marks, except for what a result cannot say."""
    results = {}
    for sample in nusc.sample:
        if nusc.get("scene", sample["scene_token"])["name"] != "scene-0103":
            continue
        results[sample["token"]] = boxes = []
        for token in sample["anns"]:
            record = nusc.get("sample_annotation", token)
            name = category_to_detection_name(record["category_name"])
            if name is None:
                continue
            boxes.append(
                {
                    "sample_token": sample["token"],
                    "translation": record["translation"],
                    "size": record["size"],
                    "rotation": record["rotation"],
                    "velocity": nusc.box_velocity(token)[:2].tolist(),
                    "detection_name": name,
                    "detection_score": 0.9,
                    "attribute_name": "".join(
                        nusc.get("attribute", attribute)["name"] for attribute in record["attribute_tokens"]
                    ),
                }
            )
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"meta": {}, "results": results}))
    config = config_factory("detection_cvpr_2019")
    metrics, _ = DetectionEval(nusc, config, str(path), "mini_val", str(tmp_path), verbose=False).evaluate()
    assert metrics.mean_ap == pytest.approx(
        1.0, abs=0.01
    )  # the devkit interpolates precision on a grid of recalls
    assert metrics.nd_score > 0.98


def test_twins_differ_in_paint_alone():
    for one, other in (("truck", "construction_vehicle"), ("bus", "trailer"), ("motorcycle", "bicycle")):
        a, b = KINDS[one], KINDS[other]
        assert (a.size, a.parts, a.reflectance) == (b.size, b.parts, b.reflectance)
        assert np.abs(np.subtract(a.colour, b.colour)).max() > 100


def test_a_finished_dataset_is_left_alone(dataset):
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    generate(dataset, 3, frames_per_scene=3, scenes_per_split={"mini_train": 1, "mini_val": 1})
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before


def test_another_dataset_is_not_written_over(dataset, copied):
    with pytest.raises(DataError, match=r"holds another generated dataset.*'seed': 3"):
        generate(dataset, 4, frames_per_scene=3, scenes_per_split={"mini_train": 1, "mini_val": 1})
    (copied / "synth.json").unlink()
    with pytest.raises(DataError, match="holds a dataset that was not generated"):
        generate(copied, 3)


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        generate(tmp_path / "file", 0)


def test_arguments_that_make_no_sense(tmp_path):
    with pytest.raises(DataError, match="at least 1"):
        generate(tmp_path, 0, frames_per_scene=0)
    with pytest.raises(DataError, match="has 2 scenes, cannot make 3"):
        generate(tmp_path, 0, scenes_per_split={"mini_val": 3})
    with pytest.raises(DataError, match="unknown split"):
        generate(tmp_path, 0, scenes_per_split={"nano": 1})
    with pytest.raises(DataError, match="at least one scene"):
        generate(tmp_path, 0, scenes_per_split={"mini_val": 0})


def test_progress_is_told(tmp_path):
    calls = []
    generate(
        tmp_path,
        1,
        frames_per_scene=1,
        scenes_per_split={"mini_train": 2},
        workers=1,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 2), (2, 2)]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Two frames of a scene as a full rig's LiDAR gives them; small images, which are not looked at."""
    root = tmp_path_factory.mktemp("full")
    rig = Rig("small", 160, 90, FULL.sweeps)
    generate(root, 3, frames_per_scene=2, scenes_per_split={"mini_train": 1}, workers=1, rig=rig)
    return root


def test_the_full_rig_has_the_image_size_and_the_scan_rate_of_nuscenes():
    assert (FULL.width, FULL.height) == (1600, 900)
    assert (FULL.sweeps + 1) / 0.5 == 20  # scans a second
    intrinsic = cameras(FULL)[0].intrinsic
    assert intrinsic[0, 0] == 1266.0
    np.testing.assert_allclose(intrinsic[:2] / 4, cameras(MINI)[0].intrinsic[:2])


def test_sweeps_are_a_chain_of_twenty_a_second(full):
    tables = NuScenes(VERSION, str(full), verbose=False)
    scans = [r for r in tables.sample_data if r["channel"] == "LIDAR_TOP"]
    token, times, keys = next(r["token"] for r in scans if not r["prev"]), [], []
    while token:
        record = tables.get("sample_data", token)
        assert (full / record["filename"]).is_file()
        assert record["filename"].startswith("samples" if record["is_key_frame"] else "sweeps")
        times.append(record["timestamp"])
        keys.append(record["is_key_frame"])
        token = record["next"]
    assert len(times) == len(scans) == 20
    assert set(np.diff(times)) == {50_000}
    assert [i for i, key in enumerate(keys) if key] == [9, 19]


def test_sweeps_of_standing_things_lie_on_top_of_one_another(full):
    """Points of earlier scans, moved by the ego's motion, fill the boxes of what stands still."""
    frame = read_frames(full, VERSION, "mini_train")[1]
    assert len(frame.sweeps) == 10  # nine between, and the key frame before, as mmdet3d's converter lists
    points = load_points(frame)
    assert np.allclose(np.unique(points[:, 4]), np.arange(11) * 0.05)
    still = (np.hypot(frame.boxes[:, 7], frame.boxes[:, 8]) < 0.1) & (frame.num_points > 20)
    assert still.sum() > 5
    for lag in (0.05, 0.45):
        scan = points[np.isclose(points[:, 4], lag)]
        found = points_in_boxes(scan, frame.boxes[still])
        # another scan of the same thing from a little elsewhere: as many points, within a third
        assert abs(found.sum() / frame.num_points[still].sum() - 1) < 0.33
