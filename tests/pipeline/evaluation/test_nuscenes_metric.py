"""Detections to the official metric: the truth scores 1, damage costs what it should."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.utils.data_classes import Box
from pyquaternion import Quaternion

from pipeline.config.settings import CLASSES
from pipeline.data.formats.frame_record import FrameRecord
from pipeline.data.formats.nuscenes_tables import open_tables, read_frames
from pipeline.data.sample import DataError, Detections
from pipeline.evaluation.nuscenes_metric import ERRORS, NuScenesMetric, devkit_boxes
from pipeline.evaluation.submission import (
    EvaluationError,
    FramePose,
    load_detections,
    save_detections,
    submission_boxes,
)


@pytest.fixture(scope="module")
def frames(small_dataset: Path) -> list[FrameRecord]:
    return read_frames(small_dataset, "v1.0-mini", "mini_val")


@pytest.fixture(scope="module")
def metric(small_dataset: Path) -> NuScenesMetric:
    return NuScenesMetric(small_dataset, "v1.0-mini", "mini_val")


def truth(frames: list[FrameRecord]) -> tuple[list[FramePose], list[Detections]]:
    poses = [FramePose(frame.token, frame.ego2global @ frame.lidar2ego) for frame in frames]
    found = [
        Detections(np.nan_to_num(f.boxes), np.full(len(f.boxes), 0.9, np.float32), f.labels) for f in frames
    ]
    return poses, found


def scores(metric: NuScenesMetric, poses: list[FramePose], found: list[Detections]) -> dict[str, float]:
    return {score.metric: score.value for score in metric.score(poses, found)}


def devkit_scores(
    root: Path, folder: Path, poses: list[FramePose], found: list[Detections]
) -> dict[str, float]:
    """Let the devkit evaluate a submission file by itself."""
    results = {pose.token: submission_boxes(pose, one) for pose, one in zip(poses, found, strict=True)}
    path = folder / "submission.json"
    path.write_text(json.dumps({"meta": {"use_camera": True}, "results": results}))
    tables, config = open_tables(root, "v1.0-mini"), config_factory("detection_cvpr_2019")
    run = DetectionEval(tables, config, str(path), "mini_val", str(folder), verbose=False)
    metrics, _ = run.evaluate()
    made = metrics.serialize()
    errors = {ERRORS[kind][0]: value for kind, value in made["tp_errors"].items()}
    classes = {f"AP/{name}": value for name, value in made["mean_dist_aps"].items()}
    return {**classes, **errors, "mAP": made["mean_ap"], "NDS": made["nd_score"]}


@pytest.mark.parametrize("seed", [0, 1])
def test_every_number_has_the_bits_of_the_devkit(
    metric: NuScenesMetric, frames: list[FrameRecord], small_dataset: Path, tmp_path: Path, seed: int
) -> None:
    rng, (poses, found) = np.random.default_rng(seed), truth(frames)
    sigma = np.array([0.6, 0.6, 0.2, 0, 0, 0, 0.3, 0.5, 0.5])  # sizes stay positive
    guesses = [
        Detections(
            np.concatenate([f.boxes + rng.normal(0, sigma, f.boxes.shape), f.boxes]).astype(np.float32),
            rng.random(2 * len(f.boxes)).astype(np.float32),
            np.concatenate([f.labels, rng.permutation(f.labels)]),
        )
        for f in found
    ]
    got = scores(metric, poses, guesses)
    assert got == devkit_scores(small_dataset, tmp_path, poses, guesses)
    assert 0 < got["mAP"] < 1


def test_the_truth_scores_one_in_every_class_there_is(
    metric: NuScenesMetric, frames: list[FrameRecord]
) -> None:
    got = scores(metric, *truth(frames))
    present = {CLASSES[label] for frame in frames for label in frame.labels[frame.num_points > 0]}
    whole = {name for name in CLASSES if got[f"AP/{name}"] == pytest.approx(1.0)}
    # a class that stands beyond its own range does not count: 0, as if it were absent
    assert all(got[f"AP/{name}"] == 0.0 for name in set(CLASSES) - whole)
    assert whole <= present
    assert len(whole) >= len(present) - 2
    assert got["mAP"] == pytest.approx(np.mean([got[f"AP/{name}"] for name in CLASSES]))


def test_a_shift_of_three_metres_fails_three_of_four_thresholds(
    metric: NuScenesMetric, frames: list[FrameRecord]
) -> None:
    poses, found = truth(frames)
    cars = [replace_boxes(f, f.labels == 0) for f in found]
    moved = [replace(f, boxes=f.boxes + np.array([3, 0, 0, 0, 0, 0, 0, 0, 0], np.float32)) for f in cars]
    assert scores(metric, poses, cars)["AP/car"] == pytest.approx(1.0)
    assert (
        scores(metric, poses, moved)["AP/car"] <= 0.25 + 0.25
    )  # 4 m alone may match; 2 m by chance, a neighbour


def replace_boxes(found: Detections, keep: np.ndarray) -> Detections:
    return Detections(found.boxes[keep], found.scores[keep], found.labels[keep])


def test_nothing_found_scores_nothing(metric: NuScenesMetric, frames: list[FrameRecord]) -> None:
    poses, found = truth(frames)
    got = scores(metric, poses, [replace_boxes(f, f.labels < 0) for f in found])
    assert got["mAP"] == got["NDS"] == 0.0
    assert got["mATE"] == 1.0


def test_boxes_go_to_the_global_frame_as_the_devkit_moves_them(frames: list[FrameRecord]) -> None:
    frame = frames[0]
    found = Detections(
        np.nan_to_num(frame.boxes), np.linspace(1, 0.1, len(frame.boxes), dtype=np.float32), frame.labels
    )
    pose = FramePose(frame.token, frame.ego2global @ frame.lidar2ego)
    for made, box in zip(submission_boxes(pose, found), found.boxes.astype(float), strict=True):
        oracle = Box(
            box[:3], box[[4, 3, 5]], Quaternion(axis=[0, 0, 1], radians=box[6]), velocity=(*box[7:9], 0)
        )
        for matrix in (frame.lidar2ego, frame.ego2global):
            # the devkit's check of orthogonality allows float64 rounding only; poses are stored so
            oracle.rotate(Quaternion(matrix=matrix[:3, :3], rtol=1e-6, atol=1e-6))
            oracle.translate(matrix[:3, 3])
        np.testing.assert_allclose(
            made["translation"], oracle.center, atol=1e-6
        )  # 1e-9 of a city's coordinates
        np.testing.assert_allclose(made["velocity"], oracle.velocity[:2], atol=1e-9)
        assert Quaternion.absolute_distance(Quaternion(made["rotation"]), oracle.orientation) < 1e-9
        np.testing.assert_allclose(made["size"], oracle.wlh)


def test_attributes_follow_class_and_speed() -> None:
    boxes = np.zeros((4, 9), np.float32)
    boxes[:, 3:6] = 1
    boxes[1::2, 7] = 5.0
    labels = np.array([CLASSES.index(name) for name in ("car", "car", "pedestrian", "barrier")])
    made = submission_boxes(FramePose("t", np.eye(4)), Detections(boxes, np.ones(4, np.float32), labels))
    assert [box["attribute_name"] for box in made] == [
        "vehicle.parked",
        "vehicle.moving",
        "pedestrian.standing",
        "",
    ]


def test_at_most_500_boxes_the_best_first() -> None:
    rng = np.random.default_rng(0)
    found = Detections(
        np.ones((700, 9), np.float32), rng.uniform(size=700).astype(np.float32), np.zeros(700, np.int64)
    )
    made = [box["detection_score"] for box in submission_boxes(FramePose("t", np.eye(4)), found)]
    assert made == sorted(found.scores.tolist(), reverse=True)[:500]


def test_detections_that_are_not_finite_are_refused() -> None:
    found = Detections(np.full((1, 9), np.nan, np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    with pytest.raises(EvaluationError, match="frame t: detections hold numbers that are not finite"):
        submission_boxes(FramePose("t", np.eye(4)), found)


def test_a_pose_that_is_not_finite_is_refused() -> None:
    found = Detections(np.ones((1, 9), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    with pytest.raises(EvaluationError, match=r"frame t: its pose holds numbers .* check the dataset's"):
        submission_boxes(FramePose("t", np.full((4, 4), np.nan)), found)


def test_boxes_are_those_that_the_devkit_makes(frames: list[FrameRecord]) -> None:
    poses, found = truth(frames)
    made = {pose.token: submission_boxes(pose, one) for pose, one in zip(poses, found, strict=True)}
    ours, theirs = devkit_boxes(made), EvalBoxes.deserialize(made, DetectionBox)
    assert ours.sample_tokens == theirs.sample_tokens
    assert [vars(box) for box in ours.all] == [vars(box) for box in theirs.all] != []


def test_missing_frames_are_refused(metric: NuScenesMetric, frames: list[FrameRecord]) -> None:
    poses, found = truth(frames)
    with pytest.raises(EvaluationError, match="needs every frame of the split"):
        metric.score(poses[1:], found[1:])


def test_tables_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        NuScenesMetric(tmp_path, "v1.0-mini", "mini_val")


def test_kept_detections_come_back_exactly(tmp_path: Path, frames: list[FrameRecord]) -> None:
    poses, found = truth(frames)
    found[0] = replace_boxes(found[0], found[0].labels < 0)  # a frame without any
    save_detections(tmp_path / "p.npz", poses, found)
    back_poses, back = load_detections(tmp_path / "p.npz")
    assert [pose.token for pose in back_poses] == [pose.token for pose in poses]
    for one, two in zip(found, back, strict=True):
        np.testing.assert_array_equal(one.boxes, two.boxes)
        np.testing.assert_array_equal(one.scores, two.scores)
        np.testing.assert_array_equal(one.labels, two.labels)
    for one, two in zip(poses, back_poses, strict=True):
        np.testing.assert_array_equal(one.lidar2global, two.lidar2global)


def test_scores_do_not_depend_on_what_was_scored_before(
    metric: NuScenesMetric, frames: list[FrameRecord], small_dataset: Path
) -> None:
    poses, found = truth(frames)
    moved = [replace(f, boxes=f.boxes + np.array([0.4, 0, 0, 0, 0, 0, 0, 0, 0], np.float32)) for f in found]
    metric.score(poses, moved)
    assert metric.score(poses, found) == NuScenesMetric(small_dataset, "v1.0-mini", "mini_val").score(
        poses, found
    )


@pytest.mark.parametrize(("metres", "counts"), [(49.0, True), (51.0, False)])
def test_a_car_counts_within_fifty_metres_alone(
    metric: NuScenesMetric, frames: list[FrameRecord], metres: float, counts: bool
) -> None:
    """The devkit's range of cars is 50 m from the ego vehicle: wrong cars beyond it cost nothing."""
    poses, found = truth(frames)
    wrong = []
    for frame, one in zip(frames, found, strict=True):
        ring = np.linspace(0, 2 * np.pi, 8, endpoint=False)
        boxes = np.tile(np.array([0, 0, 0, 4, 2, 1.5, 0, 0, 0], np.float32), (8, 1))
        ego = np.stack([metres * np.cos(ring), metres * np.sin(ring), 0 * ring, 1 + 0 * ring])
        boxes[:, :3] = (np.linalg.inv(frame.lidar2ego) @ ego)[:3].T
        wrong.append(
            Detections(
                np.concatenate([boxes, one.boxes]),
                np.concatenate([np.full(8, 0.99, np.float32), one.scores]),
                np.concatenate([np.zeros(8, np.int64), one.labels]),
            )
        )
    assert (scores(metric, poses, wrong)["AP/car"] < 0.99) == counts
