"""The object database gives back what was cut out, and reads what CMT's tools write."""

import pickle
import shutil

import cv2
import numpy as np
import pytest

from pipeline.config.settings import CLASSES
from pipeline.data.augmentation.object_database import open_database
from pipeline.data.augmentation.object_database_writer import write_database
from pipeline.data.augmentation.transforms import image_rectangles
from pipeline.data.boxes import points_inside
from pipeline.data.formats.file_source import FileSource
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.sample import DataError


@pytest.fixture(scope="module")
def source(dataset):
    return FileSource(read_frames(dataset, "v1.0-mini", "mini_train"))


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("objects") / "database"
    calls = []
    count = write_database(source, out, lambda done, total: calls.append((done, total)))
    assert count == sum(len(source[i].boxes) for i in range(3))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    return out


def test_every_object_comes_back(source, folder):
    database, index = open_database(folder), 0
    for sample in source:
        rectangles = image_rectangles(sample.boxes, sample.lidar2img, sample.images.shape[1:3])
        for box, label, places in zip(sample.boxes, sample.labels, rectangles.swapaxes(0, 1), strict=True):
            np.testing.assert_array_equal(database.boxes[index], box)
            assert database.labels[index] == label
            inside = sample.points[points_inside(sample.points, box)]
            assert database.num_points[index] == len(inside)
            cloud = database.points(index)
            np.testing.assert_allclose(cloud[:, :3] + box[:3], inside[:, :3], atol=1e-5)
            np.testing.assert_array_equal(cloud[:, 3:], inside[:, 3:])
            crop, sides = database.crop(index), places[:, 2:] - places[:, :2]
            areas = np.where((sides > 10).all(1), sides.prod(1), 0)
            if areas.max() == 0:
                assert crop is None
            else:
                view = int(areas.argmax())
                left, top, right, bottom = places[view]
                np.testing.assert_array_equal(crop, sample.images[view, top:bottom, left:right])
            index += 1
    assert index == len(database.labels)


def test_a_box_behind_a_camera_has_no_rectangle_there():
    look = np.eye(4)[None]  # along z
    boxes = np.array(
        [[0, 0, 5, 1, 1, 1, 0, 0, 0], [0, 0, -5, 1, 1, 1, 0, 0, 0], [0, 0, 0.2, 1, 1, 1, 0, 0, 0]]
    )
    rectangles = image_rectangles(boxes.astype(np.float32), look, (90, 160))
    np.testing.assert_array_equal(rectangles[0, 1:], 0)


@pytest.fixture
def dbinfos(folder, tmp_path):
    """The same objects as CMT's create_gt_database.py writes them: z at the bottom, one file each."""
    database, infos = open_database(folder), {name: [] for name in CLASSES}
    for index in range(len(database.labels)):
        name = CLASSES[database.labels[index]]
        box, points = database.boxes[index].copy(), database.points(index)
        box[2] -= box[5] / 2
        points[:, 2] += box[5] / 2
        points.astype("<f4").tofile(tmp_path / f"{index}.bin")
        crop = database.crop(index)
        if crop is not None:
            cv2.imwrite(str(tmp_path / f"{index}.png"), crop)
        infos[name].append(
            {
                "name": name, "path": f"{index}.bin", "image_idx": "t", "gt_idx": index, "box3d_lidar": box,
                "image_path": "" if crop is None else f"{index}.png", "num_points_in_gt": len(points),
                "difficulty": np.int32(0), "group_id": index,
            }
        )  # fmt: skip
    path = tmp_path / "nuscenes_dbinfos_train.pkl"
    path.write_bytes(pickle.dumps(infos))
    return path


def test_dbinfos_are_read_as_ours(folder, dbinfos):
    ours, theirs = open_database(folder), open_database(dbinfos)
    order = np.argsort(ours.labels, kind="stable")
    np.testing.assert_array_equal(theirs.labels, ours.labels[order])
    np.testing.assert_array_equal(theirs.num_points, ours.num_points[order])
    np.testing.assert_allclose(theirs.boxes, ours.boxes[order], atol=1e-6)
    for place in (0, 20, 60):
        np.testing.assert_allclose(theirs.points(place), ours.points(int(order[place])), atol=1e-6)
        a, b = theirs.crop(place), ours.crop(int(order[place]))
        assert (a is None and b is None) or (a == b).all()


@pytest.mark.parametrize("columns", [4, 5, 6])
def test_points_of_any_number_of_columns(columns, tmp_path):
    """What the length says: four columns have no time lag, the sixth is left out."""
    cloud = np.arange(3 * columns, dtype="<f4").reshape(3, columns) / 10
    cloud.tofile(tmp_path / "0.bin")
    info = {"path": "0.bin", "box3d_lidar": [0, 0, 0, 4, 2, 2, 0], "num_points_in_gt": 3}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"car": [info]}))
    points = open_database(tmp_path / "x.pkl").points(0)
    expected = np.zeros((3, 5), np.float32)
    expected[:, : min(columns, 5)] = cloud[:, :5]
    expected[:, 2] -= 1  # z is relative to the bottom of a box of 2 m
    np.testing.assert_array_equal(points, expected)


class _Harmful:
    def __reduce__(self):
        return eval, ("1 + 1",)


def test_refusals(folder, tmp_path, source):
    with pytest.raises(DataError, match="no such object database; `biaswise data objects` makes one"):
        open_database(tmp_path / "nothing")
    with pytest.raises(DataError, match="is there already"):
        write_database(source, folder)
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"car": _Harmful()}))
    with pytest.raises(DataError, match=r"builtins\.eval.*only numpy"):
        open_database(tmp_path / "bad.pkl")
    (tmp_path / "odd.pkl").write_bytes(pickle.dumps({"car": [{"path": "x"}]}))
    with pytest.raises(DataError, match=r"not a dbinfos file.*box3d_lidar"):
        open_database(tmp_path / "odd.pkl")
    (tmp_path / "none.pkl").write_bytes(pickle.dumps({"animal": []}))
    with pytest.raises(DataError, match="no object of the ten classes"):
        open_database(tmp_path / "none.pkl")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_database(source, tmp_path / "file" / "database")


def test_a_database_cut_short(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "cut")
    data = (tmp_path / "cut/objects.bin").read_bytes()
    (tmp_path / "cut/objects.bin").write_bytes(data[:-100])
    with pytest.raises(DataError, match="cut short"):
        open_database(tmp_path / "cut")
    (tmp_path / "cut/objects.parquet").unlink()
    with pytest.raises(DataError, match="no whole object database"):
        open_database(tmp_path / "cut")
