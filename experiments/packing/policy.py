"""How a study shares the machine: by the command line, by its recipe, by its folder, or by a probe."""

import math
import os
import sys
from dataclasses import dataclass, replace

from experiments.packing.planner import PackingPlan
from experiments.recipes.recipe import Recipe
from experiments.storage.study_folder import StudyError, StudyFolder, read_json, write_json
from experiments.terminal import Terminal
from pipeline.config.same_but_plan import same_but_plan
from pipeline.json_files import JsonError

FILE = "concurrency.json"
"""File of a study with the packing that a probe chose; a resumed study uses it again."""

PROBED = "recipe"
"""Key of that file: digest of the recipe that was probed. One that was given up before its first trial leaves
the file to another."""

LIMIT_FILE = "cohort_limit.json"
"""File of a study of which a cohort did not fit into memory: how many trials of one do."""


def with_packing(recipe: Recipe, folder: StudyFolder) -> Recipe:
    """Return the recipe with the torch threads that a probe chose when the study began, if one did."""
    kept = _kept(recipe, folder)
    return recipe.with_threads(kept.threads) if kept and kept.threads else recipe


@dataclass(frozen=True)
class PackingRequest:
    """What the user, or the recipe, asks for.

    Attributes:
        concurrent: groups of workers at once that the user asks for; None if the user names no number.
        arms_per_worker: most trials of a cohort that user or recipe ask for; None if neither names a number.
        probing: whether the user asks for a probe.
    """

    concurrent: int | None = None
    arms_per_worker: int | None = None
    probing: bool = False


def remember_limit(folder: StudyFolder, trials: int) -> None:
    """Remember that more trials than this do not fit into memory together."""
    if trials < cohort_limit(folder):
        write_json(folder.path / LIMIT_FILE, {"trials": trials})


def cohort_limit(folder: StudyFolder) -> int:
    """Return how many trials fit into memory together, as far as the study has found out.

    Raises:
        StudyError: what it has written down cannot be read.
    """
    path = folder.path / LIMIT_FILE
    if not path.exists():
        return sys.maxsize
    trials = read_json(path).get("trials")
    if type(trials) is not int or trials < 1:
        raise StudyError(f"{path}: expected trials, a whole number from 1, got {trials!r}; delete it")
    return trials


def packing_of(recipe: Recipe, folder: StudyFolder, asked: PackingRequest, console: Terminal) -> PackingPlan:
    """Return how many groups of workers run at once, and how many trials each runs together.

    Args:
        recipe: the study; its data must exist.
        folder: its folder; the packing that a probe chooses is written there.
        asked: what is not left to the recipe or to the probe.
        console: the choice and its reason are printed there.

    Raises:
        StudyError: the probe cannot measure, or the number does not fit the GPUs.
    """
    concurrent = asked.concurrent
    if concurrent is None and not asked.probing:
        concurrent = recipe.concurrent_trials
    if concurrent is not None:
        return replace(_shared(recipe, concurrent), arms_per_worker=asked.arms_per_worker)
    packing = _kept(recipe, folder)
    if packing is None:
        packing = _probed(recipe, asked, console)
        write_json(folder.path / FILE, {**packing.to_dict(), PROBED: _but_threads(recipe)})
    console.print(packing.reason, highlight=False, soft_wrap=True)
    if asked.arms_per_worker is None:
        return packing
    return replace(packing, arms_per_worker=asked.arms_per_worker)


def _but_threads(recipe: Recipe) -> str:
    """Return the digest of a recipe, whatever number of threads a probe has given it."""
    return recipe.with_threads(1).digest


def _kept(recipe: Recipe, folder: StudyFolder) -> PackingPlan | None:
    """Return what a probe chose for this recipe; a study whose trials have started keeps its threads."""
    path = folder.path / FILE
    if not path.exists():
        return None
    plain = read_json(path)
    if plain.pop(PROBED, _but_threads(recipe)) != _but_threads(recipe) and not folder.has_started:
        return None
    try:
        return PackingPlan.from_dict(plain)
    except JsonError as error:
        raise StudyError(f"{path}: not a packing ({error}); delete it to probe again") from error


def _probed(recipe: Recipe, asked: PackingRequest, console: Terminal) -> PackingPlan:
    from experiments.packing.probe import describe, probe  # loads torch

    if os.environ.get("RAY_ADDRESS"):
        raise StudyError(
            "the probe measures this machine, not a cluster; name the number of trials by --concurrent"
        )
    dearest = max(recipe.trials, key=lambda s: sum(s.plan[site].bias != "none" for site in recipe.sites))
    if dearest.num_workers > 1:
        whole = max(describe(dearest.device).gpus // dearest.num_workers, 1)
        reason = f"A trial takes {dearest.num_workers} workers, so GPUs are not shared: {whole} at once."
        return PackingPlan(whole, reason=reason, arms_per_worker=asked.arms_per_worker)
    alike = sum(same_but_plan(dearest, settings) for settings in recipe.trials)
    most_arms = min(alike, asked.arms_per_worker or alike)
    with console.status("probing how many trials should run at once, and how many together"):
        return probe(dearest, len(recipe.trials), most_arms)


def _shared(recipe: Recipe, concurrent: int) -> PackingPlan:
    """Return a packing of this many trials, with equal shares of the GPUs of this machine."""
    settings = recipe.trials[0]
    if settings.device != "cuda" or os.environ.get("RAY_ADDRESS"):
        return PackingPlan(concurrent)
    import torch

    gpus = torch.cuda.device_count()
    if concurrent * settings.num_workers <= gpus:
        return PackingPlan(concurrent)
    if settings.num_workers > 1:
        raise StudyError(
            f"{concurrent} trials at once of {settings.num_workers} workers need "
            f"{concurrent * settings.num_workers} GPUs, and there are {gpus}; "
            "two workers of a trial cannot share one"
        )
    return PackingPlan(concurrent, gpu_share=int(1e4 / math.ceil(concurrent / gpus)) / 1e4)
