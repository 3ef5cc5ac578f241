"""Draws of logs against the devkit itself, which is given each frame as often as its log was drawn."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval

from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.sample import Detections
from pipeline.evaluation.bootstrap import FEWEST_SCENES, drawn_counts, match_split, named_logs
from pipeline.evaluation.nuscenes_metric import NuScenesMetric
from pipeline.evaluation.submission import FramePose

SCENES, FRAMES = 6, 3
ROUNDING = 1e-12  # the same numbers are summed in another order
NAMES = ("car", "pedestrian", "barrier", "traffic_cone")


def box(token, name, rng, at, score=-1.0):
    turn = rng.uniform(-np.pi, np.pi)
    return DetectionBox(
        sample_token=token,
        translation=tuple(at),
        size=tuple(rng.uniform(0.5, 4, 3)),
        rotation=(np.cos(turn / 2), 0.0, 0.0, np.sin(turn / 2)),
        velocity=tuple(rng.normal(0, 1, 2)),
        detection_name=name,
        detection_score=score,
        attribute_name=str(rng.choice(["", "vehicle.moving", "vehicle.parked"])),
    )


@pytest.fixture(scope="module")
def evaluation():
    """Objects crowded enough that detections compete for them, and scenes that differ in difficulty."""
    rng = np.random.default_rng(3)
    true, found = EvalBoxes(), EvalBoxes()
    for scene in range(SCENES):
        for frame in range(FRAMES):
            token = f"{scene}-{frame}"
            places = rng.uniform(-12, 12, (20, 3))
            names = rng.choice(NAMES, 20)
            true.add_boxes(token, [box(token, n, rng, at) for n, at in zip(names, places, strict=True)])
            shift = rng.normal(0, 0.4 + 0.5 * scene, (20, 3))
            guesses = [
                box(token, n, rng, at, float(rng.random()))
                for n, at in zip(names, places + shift, strict=True)
                if rng.random() < 0.8
            ]
            found.add_boxes(token, guesses)
    return SimpleNamespace(
        gt_boxes=true, pred_boxes=found, cfg=config_factory("detection_cvpr_2019"), verbose=False
    )


def scene_of(evaluation):
    return {token: token[0] for token in evaluation.gt_boxes.sample_tokens}


def matched(evaluation, scenes=None):
    return match_split(
        evaluation.gt_boxes, evaluation.pred_boxes, evaluation.cfg, scenes or scene_of(evaluation)
    )


def repeated(evaluation, counts):
    """Return the evaluation of a dataset in which scenes occur as often as they were drawn."""
    copies = {"gt_boxes": EvalBoxes(), "pred_boxes": EvalBoxes()}
    for name, boxes in copies.items():
        whole = getattr(evaluation, name)
        for token in whole.sample_tokens:
            for copy in range(counts[int(token[0])]):
                again = deepcopy(whole[token])
                for one in again:
                    one.sample_token = f"{token}#{copy}"
                boxes.add_boxes(f"{token}#{copy}", again)
    return SimpleNamespace(**copies, cfg=evaluation.cfg, verbose=False)


def official(evaluation):
    metrics, _ = DetectionEval.evaluate(evaluation)
    return {"mAP": metrics.mean_ap, "NDS": metrics.nd_score}


def test_every_scene_once_is_the_official_score(evaluation):
    split = matched(evaluation)
    (got,) = split.score_draws(np.ones((1, SCENES), dtype=int))
    assert split.num_logs == SCENES
    assert got == pytest.approx(official(evaluation), abs=ROUNDING)
    assert 0.05 < got["mAP"] < 0.4  # four of ten classes are there


def test_the_whole_split_has_the_bits_of_the_devkit(evaluation):
    expected, _ = DetectionEval.evaluate(evaluation)
    got, wanted = matched(evaluation).score().serialize(), expected.serialize()
    for key in ("label_aps", "mean_dist_aps", "tp_errors", "tp_scores"):
        assert got[key] == wanted[key]
    assert (got["mean_ap"], got["nd_score"]) == (wanted["mean_ap"], wanted["nd_score"])
    assert 0 < got["nd_score"] < 1


def test_a_draw_is_the_official_score_of_frames_repeated(evaluation):
    counts = drawn_counts(SCENES, 4)
    assert counts.max() > 1
    got = matched(evaluation).score_draws(counts)
    for draw, row in zip(got, counts, strict=True):
        assert draw == pytest.approx(official(repeated(evaluation, row)), abs=ROUNDING)


def test_a_score_is_no_average_over_scenes(evaluation):
    alone = matched(evaluation).score_draws(np.eye(SCENES, dtype=int))
    mean = np.mean([draw["mAP"] for draw in alone])
    assert abs(mean - official(evaluation)["mAP"]) > 0.01


def test_draws_are_the_same_for_every_trial_and_keep_the_number_of_logs():
    assert (drawn_counts(150) == drawn_counts(150)).all()
    assert (drawn_counts(150).sum(axis=1) == 150).all()


def test_few_logs_are_not_drawn_from(evaluation):
    few = dict.fromkeys(evaluation.gt_boxes.sample_tokens, "one")
    assert (matched(evaluation, few).score_draws(), matched(evaluation, few).num_logs) == ([], 1)
    split = matched(evaluation)
    whole = split.score_draws()
    assert split.num_logs == SCENES >= FEWEST_SCENES
    assert np.std([draw["NDS"] for draw in whole]) > 0


def test_a_draw_of_logs_repeats_all_scenes_of_a_log(evaluation):
    """Three drives of two scenes each: the devkit's score with both scenes as often as their drive."""
    log_of = {token: "ABC"[int(token[0]) // 2] for token in evaluation.gt_boxes.sample_tokens}
    split = matched(evaluation, log_of)
    counts = np.array([[2, 0, 1], [0, 3, 0]])
    assert split.num_logs == 3
    for draw, row in zip(split.score_draws(counts), counts, strict=True):
        assert draw == pytest.approx(official(repeated(evaluation, row.repeat(2))), abs=ROUNDING)
    assert split.score_draws() == []  # fewer than five: the spread of logs cannot be estimated


def test_scenes_of_a_log_are_one_and_a_scene_without_a_log_is_its_own():
    scene_of = {"f0": "c", "f1": "b", "f2": "a", "f3": "d", "f4": "b"}
    logs = {"a": "x", "b": "y", "c": "x", "d": ""}
    assert named_logs(scene_of, logs) == {"f0": "a", "f1": "b", "f2": "a", "f3": "d", "f4": "b"}
    alone = {scene: f"log of {scene}" for scene in "dcba"}
    assert named_logs(scene_of, alone) == scene_of  # as if there were no logs: the draws are the scenes'
    assert named_logs(scene_of, {}) == scene_of


def test_the_tables_say_which_scenes_are_of_one_log(small_dataset: Path, tmp_path: Path):
    def logs_of(root: Path) -> int:
        frames = read_frames(root, "v1.0-mini", "mini_train")
        poses = [FramePose(frame.token, frame.ego2global @ frame.lidar2ego) for frame in frames]
        nothing = [Detections(np.zeros((0, 9), np.float32), np.zeros(0), np.zeros(0, int)) for _ in poses]
        found = [Detections(np.nan_to_num(f.boxes), np.ones(len(f.boxes)), f.labels) for f in frames]
        metric = NuScenesMetric(root, "v1.0-mini", "mini_train")
        (with_boxes, without) = (metric.score_draws(poses, what)[2] for what in (found, nothing))
        assert with_boxes == without
        return with_boxes

    assert logs_of(small_dataset) == 2
    one = Path(shutil.copytree(small_dataset, tmp_path / "one"))
    path = one / "v1.0-mini" / "scene.json"
    scenes = json.loads(path.read_text())
    path.write_text(json.dumps([scene | {"log_token": scenes[0]["log_token"]} for scene in scenes]))
    assert logs_of(one) == 1


def test_through_the_judge_the_official_score_stays(small_dataset: Path):
    frames = read_frames(small_dataset, "v1.0-mini", "mini_val")
    metric = NuScenesMetric(small_dataset, "v1.0-mini", "mini_val")
    rng = np.random.default_rng(0)
    poses = [FramePose(frame.token, frame.ego2global @ frame.lidar2ego) for frame in frames]
    found = [
        Detections(np.nan_to_num(f.boxes), rng.random(len(f.boxes)).astype(np.float32), f.labels)
        for f in frames
    ]
    scores, draws, logs = metric.score_draws(poses, found)
    assert scores == metric.score(poses, found)
    assert (draws, logs) == ([], 1)
