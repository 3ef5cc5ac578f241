"""In which order the trials of a study run, which run together, and which of the concurrent places has them.

In standard order a steady slow-down of the machine cannot be told from the layers' effects. If two GPUs take
trials in turn, their difference in speed cannot be told from the last layer's effect. So the order within a
seed is random. Seeds stay in sequence: they are the blocks, and waves end with them.

Trials of a seed may run together as a cohort, in one group of workers. That is a way to run trials and no
part of what they are: it is in no digest, and a study that goes on may group what is left in another way.
"""

import hashlib
import heapq
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

from experiments.recipes.recipe import Recipe
from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.ray_train.cohort_run import cuts
from pipeline.storage.files import LOCKS, file_lock

MOST = 16
"""Trials of a cohort at most, unless more are asked for: by then loader and trunk are a small part."""

SHARED = 1.0
"""What a cohort does once (start, loading, trunk), in units of what it does for each trial: 0.6 in the demo,
1.6 in a step of the ResNet-50 model on an H200. It only decides whether the trials of a seed are spread over
places that would be idle."""


def in_running_order(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Return trials in the order in which they run: seed after seed, shuffled within each.

    The place of a trial within its seed is a hash of the recipe's digest and its name. So any part of the
    trials keeps its order, also when a study goes on after a stop.

    Args:
        recipe: the study.
        names: some of its trials.
    """
    seeds: Mapping[str, int] = {name: settings.seed for name, settings in recipe.named_trials().items()}
    blocks = {seed: place for place, seed in enumerate(dict.fromkeys(seeds.values()))}

    def drawn(name: str) -> tuple[int, str]:
        return blocks[seeds[name]], hashlib.sha256(f"{recipe.digest}/{name}".encode()).hexdigest()

    return sorted(names, key=drawn)


def cohorts_of(
    recipe: Recipe, names: Sequence[str], arms_per_worker: int | None, places: int, limit: int = sys.maxsize
) -> list[tuple[str, ...]]:
    """Return trials in cohorts: those that differ in nothing but their plan, so trials of one seed.

    Args:
        recipe: the study.
        names: trials, in running order.
        arms_per_worker: most trials of a cohort; None: so many that the places are done equally early.
        places: cohorts that run at once.
        limit: trials that fit into memory together, as far as is known.

    Returns:
        The cohorts in the order in which they start, their trials in running order.
    """
    trials = recipe.named_trials()
    alike: dict[TrialSettings, list[str]] = {}
    for name in names:
        alike.setdefault(replace(trials[name], plan=Plan(()), plan_mixture=()), []).append(name)
    most = arms_per_worker or _largest_that_fills([len(group) for group in alike.values()], places)
    most = min(most, limit)
    return [tuple(group[a:b]) for group in alike.values() for a, b in pairwise(cuts(len(group), most))]


def _largest_that_fills(sizes: Sequence[int], places: int) -> int:
    """Return the size of cohorts with which all places are done earliest; of equals, the largest.

    Args:
        sizes: numbers of trials that may be one cohort.
        places: cohorts that run at once.
    """

    def ends(most: int) -> float:
        busy_until = [0.0] * places
        for size in sizes:
            for a, b in pairwise(cuts(size, most)):
                heapq.heapreplace(busy_until, busy_until[0] + SHARED + b - a)
        return max(busy_until)

    return min(range(min(max(sizes), MOST), 0, -1), key=ends)


@contextmanager
def free_slot(study_folder: Path) -> Iterator[int]:
    """Hold the lowest of the concurrent places that no other driver of the study holds, from 0.

    Args:
        study_folder: all drivers of a study run on the machine that has it, so a lock of a file serves.
    """
    with ExitStack() as stack:
        for slot in count():
            try:
                stack.enter_context(file_lock(study_folder / LOCKS / f"slot_{slot}", timeout_s=0.0))
            except BlockingIOError:
                continue
            yield slot
            return
