"""Every plan of a recipe on the real model, with the weights that its trials start from."""

from typing import TYPE_CHECKING

from experiments.recipes.fine_tuning import KEPT_STATISTICS
from experiments.recipes.recipe import Recipe
from experiments.terminal import Terminal
from pipeline.config.settings import TrialSettings
from pipeline.storage.paths import resolve_path

if TYPE_CHECKING:
    from pipeline.detector.cmt_detector import CmtDetector


def check_models(recipe: Recipe, console: Terminal) -> None:
    """Build each model once, load its initial weights, and put every plan of every trial on it.

    A study is warned if its trials start from trained weights and let batch norms lose their statistics.

    Raises:
        TrialError: a config asks for something that would change the training and is not done here.
    """
    from pipeline.detector.build import build_model  # costs seconds: skipped when nothing is to run
    from pipeline.detector.precision import attention_dtype
    from pipeline.training.initial_weights import initial_weights, load_initial_weights
    from pipeline.training.preflight import check_config

    kinds: dict[tuple[object, ...], list[TrialSettings]] = {}
    for settings in recipe.trials:
        key = (
            settings.config,
            settings.overrides,
            settings.init_checkpoint,
            settings.device,
            settings.train.amp,
        )
        kinds.setdefault(key, []).append(settings)
    warnings = []
    for alike in kinds.values():
        first, dtype = alike[0], attention_dtype(alike[0].train.amp)
        check_config(first)
        model = build_model(resolve_path(first.config), first.overrides, first.plan, first.device, dtype)
        load_initial_weights(model, first)
        for plan in {plan for settings in alike for plan in (settings.plan, *settings.plan_mixture)}:
            model.apply_plan(plan, first.device, dtype)
        if recipe.rule is not None and initial_weights(first):
            warnings += _about_statistics(model, first.train.batch_size)
    for warning in dict.fromkeys(warnings):
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)


def _about_statistics(model: "CmtDetector", batch_size: int) -> list[str]:
    """Return what to say of batch norms that take statistics of their own in training; nothing if none does.

    What an arm gains is then in part what it gets back of the detections that new statistics cost
    (docs/log.md, 2026-11-30).
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    model.train()
    names = [
        name for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.training
    ]
    if not names:
        return []
    key, value = KEPT_STATISTICS
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [
        f"the trials start from trained weights, and their batch norms would take new statistics from "
        f"batches of {batch_size} ({names[0]}{others}); that alone may cost more NDS than a layer gains. "
        f"Keep those of the weights with --set config.{key}={value}"
    ]
