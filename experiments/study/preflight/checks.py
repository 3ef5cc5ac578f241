"""Checks of a recipe's trials, budget, power and data, and of MLflow, before a study starts."""

import os

import torch

from experiments.recipes.recipe import Recipe
from experiments.storage.study_folder import StudyError, StudyFolder
from experiments.study.next_wave import Budget, next_wave
from experiments.terminal import Terminal
from pipeline.training.preflight import check


def check_trials(recipe: Recipe, folder: StudyFolder) -> None:
    """Refuse trials whose settings make no sense here, or whose folder cannot be written."""
    here = not os.environ.get("RAY_ADDRESS")
    for name, settings in recipe.named_trials().items():
        check(settings, folder.trial(name), torch.device(settings.device), here)


def check_budget(recipe: Recipe, budget: Budget) -> None:
    """Refuse a budget that does not reach the first look of a sequential study that has not begun.

    Raises:
        AnalysisError: there would be no verdict.
    """
    if recipe.design is not None and recipe.rule is not None:
        next_wave((), recipe.rule, recipe.design, budget)


def check_power(recipe: Recipe) -> None:
    """Refuse a study that can neither find a gain of its margin nor show that there is none.

    Raises:
        StudyError: its power is below one half for both, at the noise that a trial of the demo has.
    """
    from experiments.calibration.planning.power import Power, expected_sources
    from experiments.calibration.planning.study_size import size_of

    if recipe.rule is None or recipe.underpowered:
        return
    size = size_of(recipe)
    planned = Power(size, expected_sources(size))
    if not planned.can_decide:
        more = f"more seeds (`biaswise study power {recipe.word}` shows how many)"
        if not size.tells_sites_apart:
            more = "arms in which the sites vary by themselves"
        raise StudyError(
            f"recipe {recipe.name}: {planned.in_words()} Give it {more}, or run it all the same with "
            "--underpowered"
        )


def check_data(recipe: Recipe) -> None:
    """Open every dataset of the recipe, and refuse one that lacks files of its frames."""
    from pipeline.data.formats.open import open_source
    from pipeline.data.source import Reading, place_of

    wanted = {
        (root, settings.data.nuscenes_version, split, settings.data.missing_cameras)
        for settings in recipe.trials
        for root, split in (
            *((root, settings.data.train_split) for root in settings.data.train),
            (settings.data.val, settings.data.val_split),
        )
    }
    for root, version, split, missing in sorted(wanted):
        open_source(place_of(root), version, split, Reading(missing_cameras=missing))


def check_tracking(console: Terminal) -> None:
    """Connect to MLflow once, so that no trial creates its tables; print a warning if it cannot be used."""
    from pipeline.tracking.mlflow_store import prepare_store  # costs seconds

    if warning := prepare_store():
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
