"""Measures a detector: accuracy while it trains and after it, then speed, memory and kernels."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from pipeline.config.settings import TrialSettings
from pipeline.data.formats.open import open_source
from pipeline.data.source import READ_ALL, Reading, Source
from pipeline.evaluation.inference import DetectionsByCondition, EvaluationViews, Predictor, predict
from pipeline.evaluation.nuscenes_metric import QUICK_METRICS, NuScenesMetric
from pipeline.evaluation.scene_figure import capture_scene, save_scene_figure
from pipeline.evaluation.submission import save_detections
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
    """Measures a detector on the validation split of its settings, and writes rows.

    Args:
        settings: the trial.
        session: its surroundings.
        recorder: where rows go; None on ranks other than 0.
        steps: optimiser steps of the whole training: what rows after it are of.
        reading: what is read of a frame.
    """

    def __init__(
        self,
        settings: TrialSettings,
        session: Session,
        recorder: RowRecorder | None,
        steps: int,
        reading: Reading = READ_ALL,
    ) -> None:
        self._settings = settings
        self._session = session
        self._recorder = recorder
        self._steps = steps
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

    def accuracy(self, detections: DetectionsByCondition) -> None:
        """Compute the official metric of every condition, and keep the detections; only rank 0 calls it."""
        for condition, (poses, boxes) in detections.items():
            save_detections(self._session.folder / "predictions" / f"{condition}.npz", poses, boxes)
            scores, draws, num_logs = self._official.score_draws(poses, boxes)
            self._add([Measure(s.metric, s.unit, s.value, condition=condition, n=len(poses)) for s in scores])
            self._add(
                [
                    Measure(s.metric, s.unit, s.value, condition=condition, n=num_logs, draw=s.draw)
                    for s in draws
                ]
            )

    def evaluate_quick(self, detector: Predictor, step: int, metric: str, condition: str) -> float:
        """Measure the detector in mid-training under one condition; all ranks call it.

        Args:
            detector: what is trained.
            step: steps done.
            metric: ``NDS`` or ``mAP``.
            condition: sensor condition.

        Returns:
            On rank 0 the metric, as a fraction; NaN on other ranks.
        """
        if self._session.rank == 0:
            self._session.progress("early stopping", step, self._steps, float("nan"))
        detections = predict(detector, replace(self.views, conditions=(condition,)), self._session)
        if self._recorder is None:
            return float("nan")
        poses, boxes = detections[condition]
        scores = {s.metric: s for s in self._official.score(poses, boxes) if s.metric in QUICK_METRICS}
        self._recorder.add(
            step,
            [Measure(s.metric, s.unit, s.value, condition=condition, n=len(poses)) for s in scores.values()],
        )
        return scores[metric].value

    @cached_property
    def _official(self) -> NuScenesMetric:
        data = self._settings.data
        return NuScenesMetric(resolve_path(data.val), data.nuscenes_version, data.val_split)

    def speed(self, detector: Predictor) -> None:
        """Time inference at batch 1 and read the peak memory; only rank 0 calls it."""
        frames = [self._source[i] for i in range(min(FRAMES_TIMED, len(self._source)))]
        batches = [detector.prepare([frame]) for frame in frames]
        device = self._session.device
        timed = latency(lambda i: detector.run(batches[i % len(batches)]), device, CALLS)
        self._add([*timed, peak_memory(device)])

    def picture(self, model: Any) -> None:
        """Draw ``scene.png``, the query weights of one frame, if the model has any; only rank 0 calls it."""
        middle = self._source[len(self._source) // 2]
        view = capture_scene(model, middle, self._settings.train.amp)
        if view is not None:
            save_scene_figure(view, self._session.folder / "scene.png")

    def kernels(self, step: Callable[[], object]) -> None:
        """Profile one training step; all ranks call it, because its losses are averaged over them."""
        self._add(kernels_per_site(step, cuda=self._session.device.type == "cuda"))

    def _add(self, measures: Sequence[Measure]) -> None:
        if self._recorder is not None:
            self._recorder.add(self._steps, measures)
