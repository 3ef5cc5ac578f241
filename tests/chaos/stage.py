"""Stage: the data, the unbroken study, the cluster and the nursery that all runs share."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from experiments.recipes.recipe import Recipe
from experiments.storage.study_folder import StudyFolder
from pipeline.storage.temporary import temporary_folder
from tests.chaos.cluster import ROOT, Cluster, await_nursery, environment, nursery, shim
from tests.chaos.study import chaos_recipe, make_unbroken, make_world


@dataclass
class Stage:
    """Where runs take place.

    Attributes:
        place: folder of data, unbroken study and runs.
        arms: trials that one group of workers trains together; 1: every trial alone.
        scratch: Ray's.
        cluster, nursery: see there.
    """

    place: Path
    arms: int
    scratch: Path
    cluster: Cluster
    nursery: int

    @property
    def world(self) -> Path:
        """Folder of the data."""
        return self.place / "world"

    def recipe(self) -> Recipe:
        """Return the study."""
        return chaos_recipe(self.world)

    def unbroken(self) -> StudyFolder:
        """Return the unbroken study; it is made on first use."""
        return make_unbroken(self.world, self.place / "unbroken", str(shim(self.scratch)))


@contextmanager
def stage(place: Path, arms: int) -> Iterator[Stage]:
    """Set everything up.

    Args:
        place: folder to keep data, unbroken study and runs in; what is there is used again.
        arms: of the stage.
    """
    place.mkdir(parents=True, exist_ok=True)
    with temporary_folder("chaos") as scratch, environment(scratch), nursery(log := scratch / "log") as pid:
        made = Stage(place.resolve(), arms, scratch, Cluster(scratch), pid)
        make_world(made.world)
        await_nursery(log)
        _report(made.unbroken().path, str(shim(scratch)))
        made.cluster.start()
        try:
            yield made
        finally:
            made.cluster.stop()


def _report(folder: Path, python: str) -> None:
    """Judge the unbroken study, as a study does at its end."""
    if not (folder / "verdicts.csv").exists():
        words = [python, "-m", "experiments.cli", "study", "report", str(folder)]
        subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
