"""Measures one trained detector under many plans, without training it again.

Frames are read and branches run once for several plans and all conditions. The metrics of the rows begin
with ``intervention/``, so that the rows are not mistaken for those of trials.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.data.augmentation.train_pipeline import read_train_pipeline
from pipeline.data.formats.fingerprint import fingerprint
from pipeline.data.formats.open import open_source
from pipeline.data.source import READ_ALL
from pipeline.detector.build import build_model, load_config
from pipeline.detector.precision import attention_dtype, with_autocast
from pipeline.detector.weights import load_weights
from pipeline.evaluation.evaluator import FAILURE_SEED
from pipeline.evaluation.inference import DetectionsByCondition, Predictor, predict_each
from pipeline.evaluation.nuscenes_metric import NuScenesMetric
from pipeline.evaluation.views import EvaluationViews
from pipeline.metrics.rows import Row, append_rows, read_rows
from pipeline.metrics.timing import device_name
from pipeline.metrics.versions import commit, versions
from pipeline.runtime.determinism import deterministic
from pipeline.runtime.session import LocalSession
from pipeline.storage.files import cut_partial_line
from pipeline.storage.paths import resolve_path

INTERVENTION = "intervention/"
"""Prefix of the metrics of a detector that was trained under another plan than it is measured under."""

AT_ONCE = 8
"""Plans whose detections are in memory at once: 4 GiB for nuScenes' validation split and five conditions."""

ProgressCallback = Callable[[int, int], None]
"""Gets how many passes over a frame are done, and how many there are: one per frame and group of plans."""


def evaluate_under_plans(
    settings: TrialSettings,
    weights: Path,
    plans: Sequence[Plan],
    path: Path,
    common: Row,
    progress: ProgressCallback = lambda done, total: None,
) -> None:
    """Measure a trained detector under each of several plans.

    Args:
        settings: how it was trained; it is measured on their validation split, under their conditions.
        weights: the trained weights.
        plans: resolved or not.
        path: rows file; plans that it holds already are left out.
        common: fills in study, trial, step and recipe of the rows.
        progress: called after every few frames.

    Raises:
        PlanError, DataError, CheckpointError: a plan, the data or the weights do not fit.
    """
    settings = with_autocast(settings)
    device = torch.device(settings.device)
    deterministic(device, settings.torch_threads)
    dtype = attention_dtype(settings.train.amp)
    model = build_model(resolve_path(settings.config), settings.overrides, settings.plan, device.type, dtype)
    load_weights(model.to(device), weights)
    resolved = [plan.resolve(model.sites) for plan in plans]
    cut_partial_line(path)
    known = {(row.plan, row.condition) for row in read_rows(path)} if path.exists() else set()
    lacking = [plan for plan in resolved if any((str(plan), c) not in known for c in settings.conditions)]
    data = settings.data
    config = read_train_pipeline(load_config(resolve_path(settings.config), settings.overrides).to_dict())
    reading = replace(config.val_reading if config else READ_ALL, missing_cameras=data.missing_cameras)
    source = open_source(resolve_path(data.val), data.nuscenes_version, data.val_split, reading)
    metric = NuScenesMetric(resolve_path(data.val), data.nuscenes_version, data.val_split)
    views = EvaluationViews(source, settings.conditions, FAILURE_SEED)
    common = replace(
        common,
        seed=settings.seed,
        device=device_name(device),
        versions=f"{versions()};data={fingerprint(data)}",
        commit=commit(),
    )
    groups = [lacking[start : start + AT_ONCE] for start in range(0, len(lacking), AT_ONCE)]
    for index, group in enumerate(groups):
        before, total = index * len(source), len(groups) * len(source)
        every = predict_each(
            [Predictor(model, model.image_size, settings.train.amp, plan) for plan in group],
            views,
            LocalSession(path.parent, device),
            partial(_report, progress, before, total),
        )
        for plan, detections in zip(group, every, strict=True):
            append_rows(path, _rows(replace(common, plan=str(plan)), detections, metric))


def _report(progress: ProgressCallback, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _rows(common: Row, by_condition: DetectionsByCondition, metric: NuScenesMetric) -> list[Row]:
    """Return the rows of one plan; they are written at once, so that a plan is there whole or not at all."""
    return [
        replace(
            common,
            metric=INTERVENTION + score.metric,
            unit=score.unit,
            value=score.value,
            condition=condition,
            n=len(poses),
            time=time.time(),
        )
        for condition, (poses, detections) in by_condition.items()
        for score in metric.score(poses, detections)
    ]
