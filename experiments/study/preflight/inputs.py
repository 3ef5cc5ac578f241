"""What a study reads: whether it is there, and the digests of its configs and weights."""

import importlib.util
import os
import shlex
from collections.abc import Iterator, Sequence

import torch

from experiments.recipes.recipe import Recipe
from experiments.storage.study_folder import StudyError, digest_of
from pipeline.config.provenance import files_of
from pipeline.data.source import is_remote
from pipeline.storage.paths import not_a_file, resolve_path, split_name
from pipeline.training.dataset import database_paths


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
        if problem := not_a_file(resolve_path(settings.config)):
            yield f"config: {problem}"
        init = settings.init_checkpoint
        if init and (problem := not_a_file(split_name(resolve_path(init))[0])):
            yield f"weights: {problem}; name yours with --init CHECKPOINT, or put them there"


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
    if problem := not_a_file(file):
        raise StudyError(
            f"recipe {recipe.name}: {problem}; put the config or the weights that it starts from there"
        )
    return digest_of(file)
