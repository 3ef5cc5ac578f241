"""In which order the trials of a study run, and which of the concurrent places runs each.

In standard order a drift of the machine is aliased with the layers: over the trials of a full factorial it
is a weighted sum of their columns. Likewise two places that are served in turn are the last layer. So the
order within a seed is random. Seeds stay in sequence: they are the blocks, and waves end with them.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from experiments.recipes.recipe import Recipe
from pipeline.storage.files import LOCKS, file_lock


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
