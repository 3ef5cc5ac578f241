"""Detections -> nuScenes submission -> the official devkit's verdict, per sensor condition.

The devkit's ``DetectionEval`` runs unmodified with its configuration ``detection_cvpr_2019``. Its
tables and the true boxes are loaded once and serve all conditions.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.settings import CLASSES
from pipeline.data.formats.nuscenes_tables import open_tables
from pipeline.data.sample import Detections
from pipeline.evaluation.bootstrap import DRAWS, can_draw, resampled_scores
from pipeline.evaluation.submission import EvaluationError, FramePose, write_submission

ERRORS = {
    "trans_err": ("mATE", "m"),
    "scale_err": ("mASE", "fraction"),
    "orient_err": ("mAOE", "rad"),
    "vel_err": ("mAVE", "m/s"),
    "attr_err": ("mAAE", "fraction"),
}
"""The devkit's true-positive errors -> metric name and unit."""

HIGHER_IS_BETTER = ("NDS", "mAP", *(f"AP/{name}" for name in CLASSES))
"""Metrics of which more is better: what a study can ask about."""

QUICK_METRICS = ("NDS", "mAP")
"""What is measured in mid-training."""


@dataclass(frozen=True)
class Score:
    """One number of the official metric; ``draw`` is the index of the draw of scenes if it is about one."""

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
        self._truth: Mapping[str, list[Any]] | None = None

    def score(self, poses: Sequence[FramePose], detections: Sequence[Detections]) -> list[Score]:
        """Run the devkit on the detections of all frames of the split.

        Args:
            poses: all frames of the split, in any order.
            detections: what was found in each.

        Returns:
            ``AP/<class>`` for every class, the five mean errors, ``mAP`` and ``NDS``.

        Raises:
            EvaluationError: a detection is not finite, or frames are missing.
        """
        if not any(len(found.scores) for found in detections):
            return _nothing_found()  # the devkit stops at a submission without any box
        with tempfile.TemporaryDirectory() as folder:  # it reads a file, and makes folders for its plots
            path = Path(folder) / "submission.json"
            write_submission(path, poses, detections)
            return _scores(self._run(path)[0])

    def score_draws(
        self, poses: Sequence[FramePose], detections: Sequence[Detections]
    ) -> tuple[list[Score], list[Score], int]:
        """Run the devkit, and again on draws of the split's scenes.

        Returns:
            What ``score`` returns; ``mAP`` and ``NDS`` of every draw; the number of scenes.
        """
        if not any(len(found.scores) for found in detections):
            scenes = set(self._scenes(poses).values())
            none = {"mAP": 0.0, "NDS": 0.0}
            return _nothing_found(), _of_draws([none] * DRAWS if can_draw(scenes) else []), len(scenes)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "submission.json"
            write_submission(path, poses, detections)
            summary, run = self._run(path)
        draws, num_scenes = resampled_scores(run, self._scenes(poses))
        return _scores(summary), _of_draws(draws), num_scenes

    def _scenes(self, poses: Sequence[FramePose]) -> dict[str, str]:
        tables = self._tables
        return {pose.token: str(tables.get("sample", pose.token)["scene_token"]) for pose in poses}

    def _run(self, path: Path) -> tuple[Mapping[str, Any], Any]:
        """Let the devkit evaluate a submission; return its summary, and itself."""
        from nuscenes.eval.common.config import config_factory
        from nuscenes.eval.detection import evaluate

        config = config_factory("detection_cvpr_2019")
        # its progress bar cannot be turned off
        with contextlib.redirect_stderr(io.StringIO()), self._truth_once(evaluate):
            try:
                run = evaluate.DetectionEval(
                    self._tables, config, str(path), self._split, str(path.parent), verbose=False
                )
            except AssertionError as error:
                raise EvaluationError(f"the devkit refuses the submission: {error}") from error
        metrics, _ = run.evaluate()
        summary: Mapping[str, Any] = metrics.serialize()
        return summary, run

    @contextlib.contextmanager
    def _truth_once(self, devkit: Any) -> Iterator[None]:
        """Let the devkit's module load the true boxes of the split once, not for every submission.

        The devkit drops boxes beyond their class' range from the lists it is given, so each run gets
        lists of its own; the boxes in them it marks with a distance, each time the same.
        """
        load = devkit.load_gt

        def load_once(*args: Any, **options: Any) -> Any:
            if self._truth is None:
                self._truth = {token: list(boxes) for token, boxes in load(*args, **options).boxes.items()}
            truth = EvalBoxes()
            truth.boxes.update({token: list(boxes) for token, boxes in self._truth.items()})
            return truth

        from nuscenes.eval.common.data_classes import EvalBoxes

        devkit.load_gt = load_once
        try:
            yield
        finally:
            devkit.load_gt = load


def _scores(found: Mapping[str, Any]) -> list[Score]:
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
    """What the metric's definition gives to no detection at all: no precision, every error 1."""
    scores = [Score(f"AP/{name}", "fraction", 0.0) for name in CLASSES]
    scores += [Score(name, unit, 1.0) for name, unit in ERRORS.values()]
    return [*scores, Score("mAP", "fraction", 0.0), Score("NDS", "fraction", 0.0)]
