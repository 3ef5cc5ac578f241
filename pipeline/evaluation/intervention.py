"""One trained detector under many plans, none of which it is trained for anew.

Frames are read and branches run once for several plans and all conditions. The rows are marked: their
metric begins with ``intervention/``, so that nobody takes them for trials.
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
from pipeline.detector.precision import with_autocast
from pipeline.detector.weights import load_weights
from pipeline.evaluation.evaluator import FAILURE_SEED
from pipeline.evaluation.inference import DetectionsByCondition, EvaluationViews, Predictor, predict_each
from pipeline.evaluation.nuscenes_metric import NuScenesMetric
from pipeline.metrics.recorder import cut_partial_line
from pipeline.metrics.rows import Row, append_rows, read_rows
from pipeline.metrics.timing import device_name
from pipeline.metrics.versions import commit, versions
from pipeline.runtime.determinism import deterministic
from pipeline.runtime.session import LocalSession
from pipeline.storage.paths import resolve_path

INTERVENTION = "intervention/"
"""What the metrics of a detector begin with that was not trained under the plan it is measured under."""

AT_ONCE = 8
"""Plans whose detections are held at once: of full nuScenes' validation split 4 GiB under five conditions."""

ProgressCallback = Callable[[int, int], None]
"""Told how many frames times groups of plans are done, and of how many."""


def evaluate_under_plans(
    settings: TrialSettings,
    weights: Path,
    plans: Sequence[Plan],
    path: Path,
    common: Row,
    told: ProgressCallback = lambda done, total: None,
) -> None:
    """Measure a trained detector under each of several plans.

    Args:
        settings: how it was trained; ``conditions`` and the validation split are what it is measured on.
        weights: what came of it.
        plans: resolved or not.
        path: rows file; plans that are in it already are left out.
        common: fills in study, trial and recipe of the rows.
        told: see there.

    Raises:
        PlanError, DataError, CheckpointError: a plan, the data or the weights do not fit.
    """
    settings = with_autocast(settings)
    device = torch.device(settings.device)
    deterministic(device, settings.torch_threads)
    dtype = "bfloat16" if settings.train.amp else "float32"
    model = build_model(resolve_path(settings.config), settings.overrides, settings.plan, device.type, dtype)
    load_weights(model.to(device), weights)
    resolved = [plan.resolve(model.sites) for plan in plans]
    cut_partial_line(path)
    known = {(row.plan, row.condition) for row in read_rows(path)} if path.exists() else set()
    lacking = [plan for plan in resolved if any((str(plan), c) not in known for c in settings.conditions)]
    data = settings.data
    config = read_train_pipeline(load_config(resolve_path(settings.config), settings.overrides).to_dict())
    reading = config.val_reading if config else READ_ALL
    source = open_source(resolve_path(data.val), data.nuscenes_version, data.val_split, reading)
    metric = NuScenesMetric(resolve_path(data.val), data.nuscenes_version, data.val_split)
    detector = Predictor(model, model.image_size, settings.train.amp)
    views = EvaluationViews(source, settings.conditions, FAILURE_SEED)
    common = replace(
        common,
        seed=settings.seed,
        step=settings.train.steps,
        device=device_name(device),
        versions=f"{versions()};data={fingerprint(data)}",
        commit=commit(),
    )
    groups = [lacking[start : start + AT_ONCE] for start in range(0, len(lacking), AT_ONCE)]
    for index, group in enumerate(groups):
        before, total = index * len(source), len(groups) * len(source)
        every = predict_each(
            detector, views, group, LocalSession(path.parent, device), partial(_add, told, before, total)
        )
        for plan, found in zip(group, every, strict=True):
            append_rows(path, _judged(replace(common, plan=str(plan)), found, metric))


def _add(told: ProgressCallback, before: int, total: int, done: int) -> None:
    told(before + done, total)


def _judged(common: Row, found: DetectionsByCondition, metric: NuScenesMetric) -> list[Row]:
    """Return the rows of one plan, which are written in one go."""
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
        for condition, (poses, detections) in found.items()
        for score in metric.score(poses, detections)
    ]
