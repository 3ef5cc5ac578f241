import json
from pathlib import Path

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import points_in_box, view_points
from pyquaternion import Quaternion

from pipeline.config.settings import CLASSES
from pipeline.data.formats.decoding import lidar2img, load_points
from pipeline.data.formats.nuscenes_tables import TABLES, read_frames
from pipeline.data.sample import CAMERAS, DataError

VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def nusc(dataset):
    return NuScenes(VERSION, str(dataset), verbose=False)


@pytest.fixture(scope="module")
def frames(dataset):
    return read_frames(dataset, VERSION, "mini_val")


def devkit_boxes(nusc, token, channel):
    """The devkit's boxes of a frame in a sensor's frame, those of the ten classes only, in table order."""
    from nuscenes.eval.detection.utils import category_to_detection_name

    sample = nusc.get("sample", token)
    wanted = [
        ann
        for ann in sample["anns"]
        if category_to_detection_name(nusc.get("sample_annotation", ann)["category_name"])
    ]
    data = sample["data"][channel]
    from nuscenes.utils.geometry_utils import BoxVisibility

    return nusc.get_sample_data(data, BoxVisibility.NONE, selected_anntokens=wanted)[1]


def test_boxes_are_those_of_the_devkit(nusc, frames):
    for frame in frames:
        expected = devkit_boxes(nusc, frame.token, "LIDAR_TOP")
        assert len(expected) == len(frame.boxes) > 20
        for got, label, box in zip(frame.boxes, frame.labels, expected, strict=True):
            # float32 holds positions of up to 100 m to 4e-6 m
            np.testing.assert_allclose(got[:3], box.center, atol=1e-5)
            np.testing.assert_allclose(got[3:6], box.wlh[[1, 0, 2]], atol=1e-5)
            assert abs(np.angle(np.exp(1j * (got[6] - box.orientation.yaw_pitch_roll[0])))) < 1e-5
            assert CLASSES[label].split("_")[0] in box.name.replace("trafficcone", "traffic_cone")


def test_velocity_is_the_devkits_turned_into_the_lidar_frame(nusc, frames):
    for frame in frames:
        turn = (frame.ego2global @ frame.lidar2ego)[:3, :3]
        for got, box in zip(frame.boxes, devkit_boxes(nusc, frame.token, "LIDAR_TOP"), strict=True):
            expected = turn.T @ nusc.box_velocity(box.token)
            np.testing.assert_allclose(got[7:9], expected[:2], atol=1e-5)  # float32


def test_lidar2img_projects_as_the_devkit_does(nusc, frames):
    frame = frames[1]
    project = lidar2img(frame.cam2img, frame.lidar2cam)
    for view, camera in enumerate(CAMERAS):
        for box, seen in zip(
            devkit_boxes(nusc, frame.token, "LIDAR_TOP"), devkit_boxes(nusc, frame.token, camera), strict=True
        ):
            corners = np.vstack([box.corners(), np.ones(8)])
            got = project[view] @ corners
            before = got[2] > 0.1  # behind the lens a projection means nothing
            expected = view_points(seen.corners(), frame.cam2img[view], normalize=True)
            np.testing.assert_allclose(
                (got[:2] / got[2])[:, before], expected[:2, before], atol=1e-6, rtol=1e-9
            )


def test_point_counts_are_those_of_the_files(nusc, frames):
    for frame in frames:
        points = load_points(frame)[:, :3].T
        counted = [
            int(points_in_box(box, points).sum()) for box in devkit_boxes(nusc, frame.token, "LIDAR_TOP")
        ]
        assert counted == frame.num_points.tolist()


def test_other_classes_are_left_out(dataset, frames):
    names = {
        record["token"]: record["name"]
        for record in json.loads((dataset / VERSION / "category.json").read_text())
    }
    instances = json.loads((dataset / VERSION / "instance.json").read_text())
    assert "movable_object.pushable_pullable" in {names[i["category_token"]] for i in instances}
    held = sum(len(f.boxes) for f in frames + read_frames(dataset, VERSION, "mini_train"))
    assert held < len(json.loads((dataset / VERSION / "sample_annotation.json").read_text()))


def test_camera_pose_at_its_own_time_counts(copied, edit, frames):
    """A camera that fires when the ego is 1 m further sees everything 1 m nearer."""
    before = frames[0]
    shots = json.loads((copied / VERSION / "sample_data.json").read_text())
    name = before.image_paths[0].name
    pose = next(shot["ego_pose_token"] for shot in shots if shot["filename"].endswith(name))

    def advance(records):
        record = next(r for r in records if r["token"] == pose)
        ahead = Quaternion(record["rotation"]).rotate(np.array([1.0, 0, 0]))
        record["translation"] = (np.array(record["translation"]) + ahead).tolist()

    edit("ego_pose", advance)
    after = read_frames(copied, VERSION, "mini_val")[0]
    ahead_in_lidar = before.lidar2ego[:3, :3].T @ np.array([1.0, 0, 0])
    moved = before.lidar2cam[0][:3, :3] @ ahead_in_lidar
    np.testing.assert_allclose(before.lidar2cam[0][:3, 3] - after.lidar2cam[0][:3, 3], moved, atol=1e-9)
    np.testing.assert_array_equal(before.lidar2cam[1:], after.lidar2cam[1:])


def test_sweeps_join_the_key_frame(copied, edit, frames):
    """The first scan, declared a sweep of the second, lands where the first frame saw its points."""
    first, second = frames[0], frames[1]

    def insert(records):
        scans = [r for r in records if first.scene and "LIDAR_TOP" in r["filename"]]
        one = next(r for r in scans if r["filename"].endswith(first.lidar_path.name))
        two = next(r for r in scans if r["filename"].endswith(second.lidar_path.name))
        sweep = {**one, "token": "f" * 32, "is_key_frame": False, "prev": one["token"], "next": two["token"]}
        one["next"] = two["prev"] = sweep["token"]
        records.append(sweep)

    edit("sample_data", insert)
    frame = read_frames(copied, VERSION, "mini_val")[1]
    # the sweep, and the key frame before it, which is the same scan here
    assert [sweep.path.name for sweep in frame.sweeps] == [first.lidar_path.name] * 2
    assert [sweep.lag_s for sweep in frame.sweeps] == pytest.approx([0.5, 0.5])
    to_global = [f.ego2global @ f.lidar2ego for f in (first, second)]
    np.testing.assert_allclose(frame.sweeps[0].to_key, np.linalg.inv(to_global[1]) @ to_global[0], atol=1e-9)
    points, key = load_points(frame), load_points(second)
    np.testing.assert_array_equal(points[: len(key)], key)
    assert set(np.unique(points[len(key) :, 4])) == {np.float32(frame.sweeps[0].lag_s)}
    assert read_frames(copied, VERSION, "mini_val", max_sweeps=0)[1].sweeps == ()


@pytest.mark.parametrize("table", TABLES)
def test_missing_table(copied: Path, table):
    (copied / VERSION / f"{table}.json").unlink()
    with pytest.raises(DataError, match=rf"{table}\.json: table missing"):
        read_frames(copied, VERSION, "mini_val")


def test_table_cut_short(copied: Path):
    path = copied / VERSION / "instance.json"
    path.write_text(path.read_text()[:1000])
    with pytest.raises(DataError, match="cannot open these tables"):
        read_frames(copied, VERSION, "mini_val")


def test_missing_map(copied: Path):
    next((copied / "maps").iterdir()).unlink()
    with pytest.raises(DataError, match="map mask"):
        read_frames(copied, VERSION, "mini_val")


def test_wrong_version_and_split(dataset: Path):
    with pytest.raises(DataError, match="no such folder"):
        read_frames(dataset, "v1.0-trainval", "val")
    with pytest.raises(DataError, match="unknown split 'valid'"):
        read_frames(dataset, VERSION, "valid")
    with pytest.raises(DataError, match="no scene of split 'test'"):
        read_frames(dataset, VERSION, "test")


def test_unknown_class(copied, edit):
    edit("category", lambda records: records[8].update(name="vehicle.carr"))
    with pytest.raises(DataError, match=r"unknown class 'vehicle\.carr'"):
        read_frames(copied, VERSION, "mini_val")


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("sample_annotation", "instance_token"),
        ("instance", "category_token"),
        ("sample_data", "ego_pose_token"),
        ("sample_data", "calibrated_sensor_token"),
        ("scene", "first_sample_token"),
        ("sample", "next"),
    ],
)
def test_broken_token(copied, edit, table, key):
    def damage(records):
        for record in records:
            record[key] = "0" * 32

    edit(table, damage)
    with pytest.raises(DataError, match="0000"):
        read_frames(copied, VERSION, "mini_val")


def test_missing_camera(copied, edit):
    def drop(records):
        records[:] = [record for record in records if "CAM_BACK__" not in record["filename"]]

    edit("sample_data", drop)
    with pytest.raises(DataError, match="CAM_BACK"):
        read_frames(copied, VERSION, "mini_val")


def test_chain_that_is_too_short(copied, edit):
    edit("scene", lambda records: [record.update(nbr_samples=5) for record in records])
    with pytest.raises(DataError, match="should have 5 linked samples, found 3"):
        read_frames(copied, VERSION, "mini_val")
