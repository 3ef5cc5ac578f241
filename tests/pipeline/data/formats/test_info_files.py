"""Info files: the real frame read, projected and checked against the converter's own 2-D boxes."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.settings import CLASSES
from pipeline.data.augmentation.transforms import box_corners, filter_range, project
from pipeline.data.formats.file_source import FileSource
from pipeline.data.formats.frame_record import FrameRecord
from pipeline.data.formats.infos.reader import InfoSource, read_infos
from pipeline.data.formats.infos.writer import write_infos
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.sample import CAMERAS, DataError
from pipeline.data.synthetic import generate
from pipeline.data.synthetic.sensor_rig import Rig

FRAME = Path(__file__).parents[5] / "shared/data/nuscenes_frame"
INFO = FRAME / "n015-2018-07-24-11-22-45+0800.pkl"
RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
real = pytest.mark.skipif(not INFO.exists(), reason=f"the real nuScenes frame is not at {FRAME}")


def slack(record: FrameRecord, box: int) -> float:
    """How far a corner of a box may be off, in m.

    Boxes stand upright in the global frame, against which the LiDAR leans; a box in the LiDAR frame
    keeps its yaw alone, so it is off by that angle times the distance from its centre.
    """
    up = (record.ego2global @ record.lidar2ego)[:3, 2]
    lean = np.arccos(up[2] / np.linalg.norm(up))
    return float(lean * np.linalg.norm(record.boxes[box, 3:6]) / 2)


@real
def test_real_frame_has_the_known_counts() -> None:
    sample = filter_range(InfoSource(INFO)[0], RANGE)
    names = [CLASSES[label] for label in sample.labels]
    expected = {"car": 4, "truck": 2, "bus": 1, "barrier": 22, "pedestrian": 20, "traffic_cone": 3}
    assert {name: names.count(name) for name in set(names)} == expected
    assert sample.images.shape == (6, 900, 1600, 3)
    assert len(sample.points) == 32330
    assert (sample.points[:, 4] == 0).all()


@real
def test_real_frame_keeps_unknown_velocities() -> None:
    boxes = read_infos(INFO, FRAME)[0].boxes
    assert len(boxes) == 68
    assert np.isnan(boxes[:, 7:9]).any(axis=1).sum() == 2


@real
def test_real_boxes_project_onto_the_converters_rectangles() -> None:
    """Oracle: the 2-D rectangles that mmdet3d's converter made with the devkit, per camera."""
    with INFO.open("rb") as file:
        info = pickle.load(file)["data_list"][0]
    sample = InfoSource(INFO)[0]
    record = read_infos(INFO, FRAME)[0]
    seen = project(box_corners(record.boxes), sample.lidar2img)
    within = (seen[..., :2] > 0) & (seen[..., :2] < (1600, 900)) & (seen[..., 2:] > 0)
    wholly = within.all((2, 3))
    compared = 0
    for view, camera in enumerate(CAMERAS):
        rectangles = np.array([i["bbox"] for i in info["cam_instances"][camera]]).reshape(-1, 4)
        for box in np.flatnonzero(wholly[view]):
            corners = seen[view, box, :, :2]
            ours = np.concatenate([corners.min(0), corners.max(0)])
            distance = np.abs(rectangles - ours).max(1)
            bound = 1266 * slack(record, box) / seen[view, box, :, 2].min()  # focal length in pixels
            assert distance.min() < bound, f"{camera}: box {box} is {distance.min():.2f} pixels off"
            compared += 1
    assert compared > 40


@real
def test_boxes_hold_the_points_they_claim() -> None:
    """Would fail by half a height if z were the bottom of the box."""
    record = read_infos(INFO, FRAME)[0]
    points = InfoSource(INFO)[0].points[:, :3].astype(np.float64)
    for i, box in enumerate(record.boxes.astype(np.float64)):
        local = points - box[:3]
        cos, sin = np.cos(box[6]), np.sin(box[6])
        along, across = cos * local[:, 0] + sin * local[:, 1], cos * local[:, 1] - sin * local[:, 0]
        beyond = (np.abs(np.stack([along, across, local[:, 2]], 1)) - box[3:6] / 2).max(1)
        reach = slack(record, i)
        assert (beyond < -reach).sum() <= record.num_points[i] <= (beyond < reach).sum()


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 + 1",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"metainfo": _Harmful()}))
    with pytest.raises(DataError, match=r"bad\.pkl.*builtins\.eval.*only numpy"):
        InfoSource(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "refused"),
        (b"no pickle at all", "refused"),
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps({"infos": []}), "holds no frame"),
        (pickle.dumps({"infos": 3}), "not an mmdet3d info file"),
        (pickle.dumps({"metainfo": {"info_version": "1.0"}}), "info version '1.0' with .*; expected 1.1"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "other.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        InfoSource(path)


def test_numpy_values_of_both_major_versions_are_admitted(tmp_path: Path) -> None:
    path = tmp_path / "arrays.pkl"
    content = {"metainfo": {"info_version": "1.0", "a": np.arange(3), "b": np.float64(2)}}
    old_names = pickle.dumps(content, protocol=2).replace(b"numpy._core", b"numpy.core")
    path.write_bytes(old_names)
    with pytest.raises(DataError, match="info version"):  # got past the unpickler
        InfoSource(path)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated frames with sweeps; small images."""
    root = tmp_path_factory.mktemp("swept")
    rig = Rig("small", 160, 90, 9)
    generate(root, 4, frames_per_scene=2, scenes_per_split={"mini_train": 1}, workers=1, rig=rig)
    write_infos(read_frames(root, "v1.0-mini", "mini_train"), root / "nuscenes_infos_train.pkl", "v1.0-mini")
    return root


def test_infos_give_what_tables_give(swept: Path) -> None:
    """Files found behind bare names, sweeps moved to where the tables put them, boxes and labels kept."""
    infos = InfoSource(swept / "nuscenes_infos_train.pkl")
    for one, other in zip(infos, FileSource(read_frames(swept, "v1.0-mini", "mini_train")), strict=True):
        assert one.token == other.token
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_allclose(one.lidar2img, other.lidar2img, rtol=1e-12)
        np.testing.assert_allclose(one.points[:, :3], other.points[:, :3], atol=1e-4)  # float32 at 70 m
        np.testing.assert_allclose(one.points[:, 3:], other.points[:, 3:], atol=1e-6)
    assert len(np.unique(other.points[:, 4].round(3))) == 11


def _changed(root: Path, out: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    content = pickle.loads((root / "nuscenes_infos_train.pkl").read_bytes())
    change(content["data_list"][1])
    out.write_bytes(pickle.dumps(content))
    return out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: f["images"]["CAM_BACK"].pop("cam2img"), "CAM_BACK.cam2img is None; expected"),
        (lambda f: f["images"]["CAM_FRONT"].update(lidar2cam=None), "CAM_FRONT.lidar2cam is None; expected"),
        (lambda f: f["lidar_points"].update(lidar2ego=[1, 2]), r"lidar2ego is \[1, 2\]; expected"),
    ],
)  # fmt: skip
def test_missing_calibration_is_one_sentence(swept: Path, tmp_path: Path, change: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_infos(_changed(swept, tmp_path / "bad.pkl", change), swept)


def test_an_info_file_is_not_written_over(swept: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        write_infos([], swept / "nuscenes_infos_train.pkl", "v1.0-mini")
