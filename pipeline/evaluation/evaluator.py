"""Everything measured on a detector after training - accuracy, speed, memory, kernels."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from pipeline.config.settings import TrialSettings
from pipeline.data.formats.open import open_source
from pipeline.data.sample import Detections
from pipeline.data.source import READ_ALL, Reading, Source
from pipeline.evaluation.inference import DetectionsByCondition, EvaluationViews, Predictor, predict
from pipeline.evaluation.nuscenes_metric import QUICK_METRICS, NuScenesMetric, Score
from pipeline.evaluation.scene_figure import capture_scene, save_scene_figure
from pipeline.evaluation.submission import FramePose, save_detections
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


class Evaluator:
    """Measures a trained detector on the validation split of its settings.

    Args:
        settings: the trial.
        session: its surroundings.
        record: where rows go; None on ranks other than 0.
        reading: what is read of a frame.
    """

    def __init__(
        self,
        settings: TrialSettings,
        session: Session,
        record: RowRecorder | None,
        reading: Reading = READ_ALL,
    ) -> None:
        self._settings = settings
        self._session = session
        self._record = record
        data = settings.data
        self._source: Source = open_source(
            resolve_path(data.val), data.nuscenes_version, data.val_split, reading
        )

    @property
    def views(self) -> EvaluationViews:
        """Every frame of the split under every condition of the settings."""
        return EvaluationViews(self._source, self._settings.conditions, FAILURE_SEED)

    def detect(self, detector: Predictor) -> DetectionsByCondition:
        """Detect under every condition; all ranks call it, rank 0 gets the detections of all frames."""
        session = self._session
        frames = len(self._source)
        begun = time.monotonic()

        def progress(mine: int) -> None:
            if session.rank == 0:
                done = min(frames, mine * session.world_size)
                left = (time.monotonic() - begun) * (frames - done) / done
                session.progress("evaluate", done, frames, left)

        return predict(detector, self.views, session, progress)

    def accuracy(self, found: DetectionsByCondition) -> dict[str, float]:
        """Let the official metric judge; rank 0 alone calls it.

        Returns:
            ``NDS/<condition>`` and ``mAP/<condition>``.
        """
        summary: dict[str, float] = {}
        for condition, (poses, detections) in found.items():
            scores = self._metric(condition, poses, detections)
            summary |= {f"{s.metric}/{condition}": s.value for s in scores if s.metric in QUICK_METRICS}
        return summary

    def evaluate_quick(self, detector: Predictor, step: int, metric: str, condition: str) -> float:
        """Measure the detector in mid-training under one condition; all ranks call it.

        Returns:
            On rank 0 the metric (``NDS`` or ``mAP``); NaN on the others.
        """
        found = predict(detector, replace(self.views, conditions=(condition,)), self._session)
        if self._record is None:
            return float("nan")
        poses, detections = found[condition]
        scores = {s.metric: s for s in self._official.score(poses, detections) if s.metric in QUICK_METRICS}
        self._record.add(
            step,
            [Measure(s.metric, s.unit, s.value, condition=condition, n=len(poses)) for s in scores.values()],
        )
        return scores[metric].value

    @cached_property
    def _official(self) -> NuScenesMetric:
        data = self._settings.data
        return NuScenesMetric(resolve_path(data.val), data.nuscenes_version, data.val_split)

    def _metric(
        self, condition: str, poses: Sequence[FramePose], detections: Sequence[Detections]
    ) -> list[Score]:
        folder = self._session.folder / "predictions"
        save_detections(folder / f"{condition}.npz", poses, detections)
        scores, draws, num_scenes = self._official.score_draws(poses, detections)
        self._add([Measure(s.metric, s.unit, s.value, condition=condition, n=len(poses)) for s in scores])
        self._add(
            [Measure(s.metric, s.unit, s.value, "", condition, n=num_scenes, draw=s.draw) for s in draws]
        )
        return scores

    def speed(self, detector: Predictor) -> None:
        """Time inference at batch 1 and read the peak memory; rank 0 alone calls it."""
        frames = [self._source[i] for i in range(min(FRAMES_TIMED, len(self._source)))]
        batches = [detector.prepare([frame]) for frame in frames]
        device = self._session.device
        timed = latency(lambda i: detector.run(batches[i % len(batches)]), device, CALLS)
        self._add([*timed, peak_memory(device)])

    def picture(self, model: Any) -> None:
        """Draw one frame as the model weighs it, ``scene.png``, if it does; rank 0 alone calls it."""
        middle = self._source[len(self._source) // 2]
        view = capture_scene(model, middle, self._settings.train.amp)
        if view is not None:
            save_scene_figure(view, self._session.folder / "scene.png")

    def kernels(self, step: Callable[[], object]) -> None:
        """Profile one training step; all ranks call it, because its losses are averaged over them."""
        self._add(kernels_per_site(step, cuda=self._session.device.type == "cuda"))

    def _add(self, measures: Sequence[Measure]) -> None:
        if self._record is not None:
            self._record.add(self._settings.train.steps, measures)
