"""Checks before a study starts: files, plans on the real model, initial weights, datasets, MLflow.

What cannot run is refused before anything starts that costs time.
"""

import importlib.util
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from experiments.recipes.recipe import Recipe, SyntheticDataset
from experiments.storage.study_folder import StudyError, StudyFolder, digest_of
from experiments.study.next_wave import Budget, next_wave
from experiments.study.progress import task_bar
from experiments.terminal import Terminal
from pipeline.config.provenance import files_of
from pipeline.config.settings import TrialSettings
from pipeline.data.source import is_remote
from pipeline.storage.paths import resolve_path, split_name
from pipeline.training.dataset import database_paths
from pipeline.training.preflight import check

SIDE_BY_SIDE = 2
"""Datasets that are generated at once, each by as many processes as there are cores."""


def make_datasets(datasets: tuple[SyntheticDataset, ...], console: Terminal) -> None:
    """Generate the datasets of a recipe that are absent, side by side; the others stay as they are.

    A scene is made by one process, so one dataset of few scenes would leave cores idle.

    Raises:
        DataError: a folder holds something else.
    """
    from pipeline.data.synthetic import generate
    from pipeline.data.synthetic.sensor_rig import RIGS

    done: dict[str, tuple[int, int]] = {}

    def make(dataset: SyntheticDataset, advance: Callable[[int, int], None]) -> None:
        def progress(frames: int, total: int) -> None:
            done[dataset.root] = frames, total
            parts = list(done.values())
            advance(sum(part for part, _ in parts), sum(whole for _, whole in parts))

        generate(
            resolve_path(dataset.root),
            dataset.seed,
            frames_per_scene=dataset.frames_per_scene,
            scenes_per_split=dict(dataset.scenes),
            workers=os.cpu_count() or 1,
            progress=progress,
            rig=RIGS[dataset.rig],
        )

    roots = ", ".join(dataset.root for dataset in datasets)
    if not datasets:
        return
    with (
        task_bar(console, f"dataset{'s' * (len(datasets) > 1)} {roots}") as advance,
        ThreadPoolExecutor(SIDE_BY_SIDE) as pool,
    ):
        for made in [pool.submit(make, dataset, advance) for dataset in datasets]:
            made.result()


def refuse_missing(recipe: Recipe, problems: Sequence[str] = ()) -> None:
    """Refuse a study for which something is missing; all that is missing is named at once.

    Args:
        recipe: the study.
        problems: what else is in its way, such as a storage that cannot be used.

    Raises:
        StudyError: something is missing.
    """
    found = [*problems, *_missing_devices(recipe), *_missing_files(recipe), *_missing_data(recipe)]
    found = list(dict.fromkeys(found))
    if found:
        number = f"{len(found)} things are missing: " if len(found) > 1 else ""
        listed = [f"({place}) {what}" for place, what in enumerate(found, 1)] if len(found) > 1 else found
        raise StudyError(f"recipe {recipe.name}: {number}{'; '.join(listed)}")


def _missing_devices(recipe: Recipe) -> Iterator[str]:
    """Yield what this machine lacks; the machines of a cluster are asked by Ray."""
    if os.environ.get("RAY_ADDRESS"):
        return
    wanted = max((s.num_workers for s in recipe.trials if s.device == "cuda"), default=0)
    there = torch.cuda.device_count() if wanted else 0
    if wanted > there:
        yield (
            f"GPU: a trial takes {wanted}, and torch can use {there or 'none'} on this machine; give it "
            f"--gpus-per-trial N, or run it on a cluster with `biaswise study submit {recipe.word}`"
        )
    if wanted and importlib.util.find_spec("spconv") is None and _names_sparse_convolutions(recipe):
        yield "spconv: it is not installed; pip install 'biaswise[gpu]'"


def _names_sparse_convolutions(recipe: Recipe) -> bool:
    configs = {resolve_path(settings.config) for settings in recipe.trials}
    files = {file for config in configs if config.is_file() for file in files_of(config)}
    return any("SparseEncoder" in file.read_text(encoding="utf-8") for file in files)


def _missing_files(recipe: Recipe) -> Iterator[str]:
    """Yield configs and weights that are not there."""
    for settings in recipe.trials:
        if not resolve_path(settings.config).is_file():
            yield f"config: there is no {resolve_path(settings.config)}"
        init = settings.init_checkpoint
        if init and not split_name(resolve_path(init))[0].is_file():
            yield (
                f"weights: there is no {resolve_path(init)}; name yours with --init CHECKPOINT, or put them "
                f"there"
            )


def _missing_data(recipe: Recipe) -> Iterator[str]:
    """Yield datasets that are not there and are not generated, and the objects for GT sampling."""
    generated = {dataset.root for dataset in recipe.datasets}
    for root in {r: None for s in recipe.trials for r in (*s.data.train, s.data.val)}:
        if root not in generated and not is_remote(root) and not resolve_path(root).exists():
            yield (
                f"data: there is no {resolve_path(root)}; name yours with --data PLACE, or link it: "
                f"ln -s /your/nuscenes {shlex.quote(str(resolve_path(root)))}"
            )
    first = recipe.trials[0]
    if not resolve_path(first.config).is_file():
        return
    for key, path in database_paths(first.config, first.overrides).items():
        if key.endswith("info_path") and not resolve_path(path).exists():
            yield (
                f"objects: there is no {resolve_path(path)} for GT sampling; copy CMT's "
                f"nuscenes_dbinfos_train.pkl there, or make a database with `biaswise data objects` and "
                f"name it with --set config.{key}=PATH"
            )


def digest_inputs(recipe: Recipe) -> dict[str, str]:
    """Return path -> digest of every config and checkpoint that the trials read.

    Raises:
        StudyError: one is missing.
    """
    from pipeline.training.initial_weights import initial_weights

    inputs = {}
    for settings in {(s.config, s.overrides, s.init_checkpoint): s for s in recipe.trials}.values():
        inputs[settings.config] = _digest(recipe, settings.config)
        weights = initial_weights(settings)
        if weights:
            inputs[weights] = _digest(recipe, weights)
    return dict(sorted(inputs.items()))


def _digest(recipe: Recipe, path: str) -> str:
    file, _ = split_name(resolve_path(path))
    if not file.is_file():
        raise StudyError(
            f"recipe {recipe.name}: there is no {resolve_path(path)}; put the config or the weights that "
            f"it starts from there"
        )
    return digest_of(file)


def check_trials(recipe: Recipe, folder: StudyFolder) -> None:
    """Refuse trials whose settings make no sense here, or whose folder cannot be written."""
    here = not os.environ.get("RAY_ADDRESS")
    for name, settings in recipe.named_trials().items():
        check(settings, folder.trial(name), torch.device(settings.device), here)


def check_rule(recipe: Recipe) -> None:
    """Refuse a rule about what the trials do not measure: else it would show after the last trial.

    Raises:
        StudyError: its metric or its sensor condition is none that every trial measures.
    """
    from pipeline.evaluation.nuscenes_metric import HIGHER_IS_BETTER, QUICK_METRICS

    rule = recipe.rule
    if rule is None:
        return
    known = HIGHER_IS_BETTER if recipe.early_stopping is None else QUICK_METRICS
    if rule.metric not in known:
        why = (
            "more of it is better"
            if recipe.early_stopping is None
            else "it is measured where trials may stop"
        )
        raise StudyError(
            f"recipe {recipe.name}: its rule asks for {rule.metric!r}; expected a metric of which {why}: "
            f"{', '.join(known)}"
        )
    for name, settings in recipe.named_trials().items():
        if rule.condition not in settings.conditions:
            raise StudyError(
                f"recipe {recipe.name}: its rule asks for the condition {rule.condition!r}, and trial {name} "
                f"measures {', '.join(settings.conditions) or 'none'}"
            )


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
        raise StudyError(
            f"recipe {recipe.name}: {planned.in_words()} Give it more seeds (`biaswise study power "
            f"{recipe.word}` shows how many), or run it all the same with --underpowered"
        )


def check_models(recipe: Recipe) -> None:
    """Build each model once, load its initial weights, and put every plan of every trial on it.

    Raises:
        TrialError: a config asks for something that would change the training and is not done here.
    """
    from pipeline.detector.build import build_model  # costs seconds: skipped when nothing is to run
    from pipeline.detector.precision import attention_dtype
    from pipeline.training.initial_weights import load_initial_weights
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
    for alike in kinds.values():
        first, dtype = alike[0], attention_dtype(alike[0].train.amp)
        check_config(first)
        model = build_model(resolve_path(first.config), first.overrides, first.plan, first.device, dtype)
        load_initial_weights(model, first)
        for plan in {plan for settings in alike for plan in (settings.plan, *settings.plan_mixture)}:
            model.apply_plan(plan, first.device, dtype)


def check_data(recipe: Recipe) -> None:
    """Open every dataset of the recipe, and refuse one that lacks files of its frames."""
    from pipeline.data.formats.open import open_source
    from pipeline.data.source import Reading

    wanted = {
        (root, settings.data.nuscenes_version, split, settings.data.missing_cameras)
        for settings in recipe.trials
        for root, split in (
            *((root, settings.data.train_split) for root in settings.data.train),
            (settings.data.val, settings.data.val_split),
        )
    }
    for root, version, split, missing in sorted(wanted):
        open_source(Path(resolve_path(root)), version, split, Reading(missing_cameras=missing))


def check_tracking(console: Terminal) -> None:
    """Connect to MLflow once, so that no trial creates its tables; print a warning if it cannot be used."""
    from pipeline.tracking.mlflow_store import prepare_store  # costs seconds

    if warning := prepare_store():
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
