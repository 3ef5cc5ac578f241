"""Measures a detector: accuracy while it trains and after it, then speed, memory and kernels."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pipeline.config.settings import TrialSettings
from pipeline.data.formats.open import open_source
from pipeline.data.sample import Sample
from pipeline.data.source import READ_ALL, Reading, Source
from pipeline.evaluation.inference import DetectionsByCondition, Predictor
from pipeline.evaluation.nuscenes_metric import QUICK_METRICS, NuScenesMetric
from pipeline.evaluation.scene_figure import SceneFigure, capture_scene, save_scene_figure
from pipeline.evaluation.scoring import ScoresByCondition
from pipeline.evaluation.submission import save_detections
from pipeline.evaluation.views import EvaluationViews
from pipeline.metrics.kernels import kernels_per_site
from pipeline.metrics.memory import peak_memory
from pipeline.metrics.recorder import Measure, RowRecorder
from pipeline.metrics.timing import CALLS, latency
from pipeline.runtime.session import Session
from pipeline.storage.paths import resolve_path

FAILURE_SEED = 0
"""Seeds the sensor failures: the same for every trial, so that trials differ in nothing but themselves."""

FRAMES_TIMED = 8
"""Frames that the latency measurement goes round: several, because their numbers of points differ."""


class ValidationSplit:
    """The frames that trials are measured on, and their official metric, opened once for a whole cohort.

    Args:
        settings: of a trial.
        reading: what is read of a frame.

    Raises:
        DataError: the split cannot be read.
    """

    def __init__(self, settings: TrialSettings, reading: Reading = READ_ALL) -> None:
        self._data = settings.data
        self._conditions = settings.conditions
        self.source: Source = open_source(
            resolve_path(self._data.val), self._data.nuscenes_version, self._data.val_split, reading
        )
        self._timed: list[dict[str, Any]] = []

    def views(self, *conditions: str) -> EvaluationViews:
        """Return every frame under the given conditions, or under every one of the settings."""
        return EvaluationViews(self.source, conditions or self._conditions, FAILURE_SEED)

    def timed_batches(self, detector: Predictor) -> list[dict[str, Any]]:
        """Return the frames that detections are timed on, each a batch, read and resized once for all arms.

        Args:
            detector: of any arm; all have images of one size.
        """
        if not self._timed:
            frames = (self.source[i] for i in range(min(FRAMES_TIMED, len(self.source))))
            self._timed = [detector.prepare([frame]) for frame in frames]
        return self._timed

    @cached_property
    def middle(self) -> Sample:
        """The frame that is drawn."""
        return self.source[len(self.source) // 2]

    @cached_property
    def metric(self) -> NuScenesMetric:
        """The official metric of the split."""
        data = self._data
        return NuScenesMetric(resolve_path(data.val), data.nuscenes_version, data.val_split)


class Evaluator:
    """Measures a detector on a validation split, and writes rows.

    Args:
        settings: the trial.
        session: its surroundings.
        recorder: where rows go; None on ranks other than 0.
        steps: optimiser steps of the whole training: what rows after it are of.
        split: what it is measured on.
    """

    def __init__(
        self,
        settings: TrialSettings,
        session: Session,
        recorder: RowRecorder | None,
        steps: int,
        split: ValidationSplit,
    ) -> None:
        self._settings = settings
        self._session = session
        self._recorder = recorder
        self._steps = steps
        self._split = split

    def accuracy(self, detections: DetectionsByCondition, scored: ScoresByCondition) -> None:
        """Keep the detections and the official metric of every condition; only rank 0 calls it.

        Args:
            detections: of all frames.
            scored: their scores.
        """
        for condition, (poses, boxes) in detections.items():
            save_detections(self._session.folder / "predictions" / f"{condition}.npz", poses, boxes)
            scores, draws, num_logs = scored[condition]()
            self._add([Measure(s.metric, s.unit, s.value, condition=condition, n=len(poses)) for s in scores])
            self._add(
                [
                    Measure(s.metric, s.unit, s.value, condition=condition, n=num_logs, draw=s.draw)
                    for s in draws
                ]
            )

    def quick(self, step: int, metric: str, condition: str, detections: DetectionsByCondition) -> float:
        """Measure the detector in mid-training under one condition.

        Args:
            step: steps done.
            metric: ``NDS`` or ``mAP``.
            condition: sensor condition.
            detections: on rank 0 those of all frames under the condition.

        Returns:
            On rank 0 the metric, as a fraction; NaN on other ranks.
        """
        if self._recorder is None:
            return float("nan")
        poses, boxes = detections[condition]
        scores = {s.metric: s for s in self._split.metric.score(poses, boxes) if s.metric in QUICK_METRICS}
        self._recorder.add(
            step,
            [Measure(s.metric, s.unit, s.value, condition=condition, n=len(poses)) for s in scores.values()],
        )
        return scores[metric].value

    def speed(self, detector: Predictor) -> None:
        """Time inference at batch 1 and read the peak memory; only rank 0 calls it."""
        batches = self._split.timed_batches(detector)
        device = self._session.device
        timed = latency(lambda i: detector.run(batches[i % len(batches)]), device, CALLS)
        self._add([*timed, peak_memory(device)])

    def drawing(self, model: Any) -> Callable[[], None]:
        """Return what draws ``scene.png``, the query weights of one frame, if the model has any.

        Another process can call it. Only rank 0 calls this.
        """
        view = capture_scene(model, self._split.middle, self._settings.train.amp)
        return partial(_draw, view, self._session.folder / "scene.png")

    def kernels(self, step: Callable[[], object]) -> None:
        """Profile one training step; all ranks call it, because its losses are averaged over them."""
        self._add(kernels_per_site(step, cuda=self._session.device.type == "cuda"))

    def _add(self, measures: Sequence[Measure]) -> None:
        if self._recorder is not None:
            self._recorder.add(self._steps, measures)


def _draw(view: SceneFigure | None, path: Path) -> None:
    if view is not None:
        save_scene_figure(view, path)
