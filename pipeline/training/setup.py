"""From a model to what trains it: the set-up that a trial and a benchmark share."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.plan import Plan
from pipeline.config.settings import TrainSettings, TrialSettings
from pipeline.detector.build import build_model, load_config
from pipeline.detector.deployment import train_through_graphs
from pipeline.detector.openmmlab.optimizer import accumulative_counts, build_optimizer, clip_norm
from pipeline.detector.precision import attention_dtype
from pipeline.runtime.determinism import seed_everything
from pipeline.runtime.session import Session
from pipeline.storage.paths import resolve_path
from pipeline.training.initial_weights import load_initial_weights
from pipeline.training.preflight import check_config
from pipeline.training.step import TrainStep


def build_train_step(
    model: Any,
    optim_wrapper: Mapping[str, Any],
    train: TrainSettings,
    distributed: bool = False,
    find_unused_parameters: bool = True,
) -> TrainStep:
    """Make a model ready to train.

    Args:
        model: the bare detector, on its device.
        optim_wrapper: the config's: optimiser, multipliers, clipping, accumulation.
        train: ``amp``, ``cuda_graphs`` and ``lr_scale`` hold.
        distributed: as in ``TrainStep``.
        find_unused_parameters: as in ``TrainStep``.
    """
    train_through_graphs(model, train.cuda_graphs)
    optimizer = build_optimizer(model, optim_wrapper, train.lr_scale)
    limit = clip_norm(optim_wrapper)
    clip = float("inf") if limit is None else limit
    each = accumulative_counts(optim_wrapper)
    return TrainStep(model, optimizer, clip, train.amp, distributed, find_unused_parameters, each)


def build_trial(settings: TrialSettings, session: Session) -> TrainStep:
    """Build a trial's model, load its initial weights, and make it ready to train.

    Every plan of the trial is put on the model once, so that one that does not fit is refused before
    anything trains; the last is ``settings.plan``.

    Args:
        settings: the trial; ``with_autocast`` has been applied.
        session: names the device and the number of workers.

    Raises:
        ConfigError, PlanError, WeightsError: config, a plan or the initial weights do not fit.
        TrialError: the config asks for something that would change the training and is not done here.
    """
    check_config(settings)
    seed_everything(settings.seed)
    config, dtype = resolve_path(settings.config), attention_dtype(settings.train.amp)
    model = build_model(config, settings.overrides, settings.plan, session.device.type, dtype)
    model = model.to(session.device)
    load_initial_weights(model, settings)
    plans = (*settings.plan_mixture, settings.plan)
    for plan in plans:
        model.apply_plan(plan, dtype=dtype)
    return build_train_step(
        model,
        load_config(config, settings.overrides).optim_wrapper,
        settings.train,
        distributed=session.world_size > 1,
        find_unused_parameters=not all(_uses_bias_generator(plan.resolve(model.sites)) for plan in plans),
    )


def _uses_bias_generator(plan: Plan) -> bool:
    """Return whether a resolved plan uses the bias generator, and with it the query weights."""
    return any(choice.bias not in ("none", "local") for _, choice in plan.choices)
