"""The official nuScenes detection metric of detections, for one split.

The devkit's own functions load and filter the boxes, and turn matches into scores, with its configuration
``detection_cvpr_2019``. Only the matching is ours (``pipeline.evaluation.bootstrap``): it serves the split
and all draws of its logs. A test compares every number with the devkit's ``DetectionEval``, bit for bit.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.config.settings import CLASSES
from pipeline.data.formats.nuscenes_tables import open_tables
from pipeline.data.sample import Detections
from pipeline.evaluation.bootstrap import DRAWS, MatchedSplit, can_draw, match_split, named_logs
from pipeline.evaluation.submission import EvaluationError, FramePose, submission_boxes

ERRORS = {
    "trans_err": ("mATE", "m"),
    "scale_err": ("mASE", "fraction"),
    "orient_err": ("mAOE", "rad"),
    "vel_err": ("mAVE", "m/s"),
    "attr_err": ("mAAE", "fraction"),
}
"""The devkit's true-positive errors -> metric name and unit."""

HIGHER_IS_BETTER = ("NDS", "mAP", *(f"AP/{name}" for name in CLASSES))
"""Metrics of which more is better; a study can be about each of them."""

QUICK_METRICS = ("NDS", "mAP")
"""Metrics that are measured in mid-training."""


@dataclass(frozen=True)
class Score:
    """One number of the official metric; ``draw`` is the index of the draw of logs if it is about one."""

    metric: str
    unit: str
    value: float
    draw: int | None = None


class NuScenesMetric:
    """The official metric on one split.

    Args:
        root: dataset root in nuScenes layout.
        version: nuScenes version.
        split: split of the devkit.
    """

    def __init__(self, root: Path, version: str, split: str) -> None:
        self._tables = open_tables(root, version)
        self._split = split

    def score(self, poses: Sequence[FramePose], detections: Sequence[Detections]) -> list[Score]:
        """Score the detections of all frames of the split.

        Args:
            poses: all frames of the split, in any order.
            detections: what was detected in each.

        Returns:
            ``AP/<class>`` for every class, the five mean errors, ``mAP`` and ``NDS``.

        Raises:
            EvaluationError: a detection is not finite, or frames are missing.
        """
        if not any(len(found.scores) for found in detections):
            return _nothing_found()  # the devkit's filters need at least one box
        return _scores(self._match(poses, detections).score())

    def score_draws(
        self, poses: Sequence[FramePose], detections: Sequence[Detections]
    ) -> tuple[list[Score], list[Score], int]:
        """Score the detections on the split, and on draws of its logs; arguments as in ``score``.

        Returns:
            What ``score`` returns; ``mAP`` and ``NDS`` of every draw; the number of logs.
        """
        if not any(len(found.scores) for found in detections):
            logs = set(self._logs(poses).values())
            none = {"mAP": 0.0, "NDS": 0.0}
            return _nothing_found(), _of_draws([none] * DRAWS if can_draw(logs) else []), len(logs)
        matched = self._match(poses, detections)
        return _scores(matched.score()), _of_draws(matched.score_draws()), matched.num_logs

    def _logs(self, poses: Sequence[FramePose]) -> dict[str, str]:
        """Return frame -> its log, by the tables ``sample`` and ``scene``."""
        tables = self._tables
        scene_of = {pose.token: str(tables.get("sample", pose.token)["scene_token"]) for pose in poses}
        scenes = {scene: tables.get("scene", scene) for scene in set(scene_of.values())}
        return named_logs(scene_of, {s: str(record.get("log_token", "")) for s, record in scenes.items()})

    def _match(self, poses: Sequence[FramePose], detections: Sequence[Detections]) -> MatchedSplit:
        """Match detections to objects, boxes loaded and filtered by the devkit's functions."""
        made = {
            pose.token: submission_boxes(pose, found) for pose, found in zip(poses, detections, strict=True)
        }
        if set(made) != set(self._truth.sample_tokens):
            raise EvaluationError(
                f"there are detections of {len(made)} frames, and the split {self._split} has "
                f"{len(self._truth.sample_tokens)}; the metric needs every frame of the split and no other"
            )
        boxes = self._filtered(devkit_boxes(made))
        return match_split(self._truth, boxes, self._config, self._logs(poses))

    @cached_property
    def _config(self) -> Any:
        from nuscenes.eval.common.config import config_factory

        return config_factory("detection_cvpr_2019")

    @cached_property
    def _truth(self) -> Any:
        """The objects of the split, as the devkit loads and filters them."""
        from nuscenes.eval.common.loaders import load_gt
        from nuscenes.eval.detection.data_classes import DetectionBox

        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that cannot be turned off
            try:
                boxes = load_gt(self._tables, self._split, DetectionBox)
            except AssertionError as error:
                raise EvaluationError(f"the devkit refuses the split: {error}") from error
        return self._filtered(boxes)

    def _filtered(self, boxes: Any) -> Any:
        """Drop boxes beyond the range of their class, without points, or in bicycle racks."""
        from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes

        return filter_eval_boxes(self._tables, add_center_dist(self._tables, boxes), self._config.class_range)


def devkit_boxes(made: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Return the devkit's ``EvalBoxes`` of records: what its ``EvalBoxes.deserialize`` returns.

    The constructor of its boxes checks every number of every box by itself, which takes a third of the
    metric's time. ``submission_boxes`` makes no box that it would refuse.

    Args:
        made: frame token -> its ``submission_boxes``.
    """
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.data_classes import DetectionBox

    boxes, template = EvalBoxes(), DetectionBox().__dict__
    for token, records in made.items():
        boxes.add_boxes(token, [_made(DetectionBox, template, record) for record in records])
    return boxes


def _made(box_class: Any, template: Mapping[str, Any], record: Mapping[str, Any]) -> Any:
    box = box_class.__new__(box_class)
    box.__dict__.update(template)
    box.__dict__.update((key, tuple(at) if isinstance(at, list) else at) for key, at in record.items())
    return box


def _scores(metrics: Any) -> list[Score]:
    """Read the devkit's ``DetectionMetrics``."""
    found = metrics.serialize()
    scores = [Score(f"AP/{name}", "fraction", float(found["mean_dist_aps"][name])) for name in CLASSES]
    scores += [Score(name, unit, float(found["tp_errors"][key])) for key, (name, unit) in ERRORS.items()]
    return [
        *scores,
        Score("mAP", "fraction", float(found["mean_ap"])),
        Score("NDS", "fraction", float(found["nd_score"])),
    ]


def _of_draws(draws: Sequence[Mapping[str, float]]) -> list[Score]:
    return [
        Score(metric, "fraction", value, draw)
        for draw, found in enumerate(draws)
        for metric, value in found.items()
    ]


def _nothing_found() -> list[Score]:
    """Return what the definition of the metric gives without any detection: no precision, every error 1."""
    scores = [Score(f"AP/{name}", "fraction", 0.0) for name in CLASSES]
    scores += [Score(name, unit, 1.0) for name, unit in ERRORS.values()]
    return [*scores, Score("mAP", "fraction", 0.0), Score("NDS", "fraction", 0.0)]
