"""From a model to what trains it: the set-up that a trial and a benchmark share."""

from collections.abc import Mapping
from typing import Any

import torch

from pipeline.config.settings import TrainSettings, TrialSettings
from pipeline.detector.acceleration.captured_passes import Recorders
from pipeline.detector.build import build_model
from pipeline.detector.cmt_detector import CmtDetector
from pipeline.detector.deployment import train_through_graphs
from pipeline.detector.openmmlab.optimizer import accumulative_counts, build_optimizer, clip_norm
from pipeline.detector.precision import attention_dtype
from pipeline.runtime.determinism import seed_everything
from pipeline.storage.paths import resolve_path
from pipeline.training.initial_weights import load_initial_weights
from pipeline.training.preflight import check_config
from pipeline.training.step import TrainStep


def build_train_step(
    model: Any,
    optim_wrapper: Mapping[str, Any],
    train: TrainSettings,
    distributed: bool = False,
    recorders: Recorders | None = None,
) -> TrainStep:
    """Make a model ready to train.

    Args:
        model: the bare detector, on its device.
        optim_wrapper: the config's: optimiser, multipliers, clipping, accumulation.
        train: ``amp``, ``cuda_graphs`` and ``lr_scale`` hold.
        distributed: as in ``TrainStep``.
        recorders: as in ``train_through_graphs``.
    """
    train_through_graphs(model, train.cuda_graphs, recorders=recorders)
    optimizer = build_optimizer(model, optim_wrapper, train.lr_scale)
    limit = clip_norm(optim_wrapper)
    clip = float("inf") if limit is None else limit
    each = accumulative_counts(optim_wrapper)
    return TrainStep(model, optimizer, clip, train.amp, distributed, each)


def build_detector(settings: TrialSettings, device: torch.device) -> CmtDetector:
    """Build a trial's model on its device, with its initial weights.

    Trials that differ in their plans alone start from equal weights: the plan decides about no tensor.

    Args:
        settings: the trial; ``with_autocast`` has been applied.
        device: where it trains.

    Raises:
        ConfigError, PlanError, WeightsError: config, the plan or the initial weights do not fit.
        TrialError: the config asks for something that would change the training and is not done here.
    """
    check_config(settings)
    seed_everything(settings.seed)
    config, dtype = resolve_path(settings.config), attention_dtype(settings.train.amp)
    model = build_model(config, settings.overrides, settings.plan, device.type, dtype).to(device)
    load_initial_weights(model, settings)
    return model


def put_plans(model: CmtDetector, settings: TrialSettings) -> None:
    """Put every plan of a trial on its model once, so that one that does not fit is refused at once.

    Args:
        model: has ``settings.plan`` afterwards.
        settings: the trial; ``with_autocast`` has been applied.

    Raises:
        PlanError: a plan does not fit.
    """
    for plan in (*settings.plan_mixture, settings.plan):
        model.apply_plan(plan, dtype=attention_dtype(settings.train.amp))
