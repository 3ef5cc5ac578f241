"""What one group of workers is asked to run: a trial, or several that it trains together.

Drivers and controllers import this file, so it imports neither torch nor Ray.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.config.early_stopping import EarlyStopping
from pipeline.config.settings import TrialSettings
from pipeline.ray_train.hang_detection import HANG_TIMEOUT_S
from pipeline.storage.sync import StudySync
from pipeline.storage.trial_status import read_status


@dataclass(frozen=True)
class CohortRun:
    """Trials that one group of workers runs together; one trial is a cohort of one.

    Attributes:
        trials: folder ``.../trials/<trial name>``, on storage that all workers see -> settings, which are
            equal but for the plan.
        recipe: digest of the study's recipe; empty without a study.
        early_stopping: the steps at which trials are measured before their ends and may be stopped.
        gpu_share: part of a GPU that a worker gets; below 1 it also gets only this part of the memory.
        hang_timeout_s: silence of all trials after which the workers count as hung; 0: never.
        study_sync: of the study, if it is also kept at a URI.
        slot: which of the concurrent places of the study runs the trials, from 0.
        cores: of a machine that the workers may use for what can be done in several processes.
    """

    trials: Mapping[Path, TrialSettings]
    recipe: str = ""
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    gpu_share: float = 1.0
    hang_timeout_s: float = HANG_TIMEOUT_S
    study_sync: StudySync | None = None
    slot: int = 0
    cores: int = 1

    @property
    def settings(self) -> TrialSettings:
        """Those of the first trial: all but the plan are those of every trial."""
        return next(iter(self.trials.values()))

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of the trials."""
        return tuple(self.trials)

    @property
    def gpus(self) -> float:
        """GPUs that all workers have together; 0 on a CPU."""
        return self.settings.num_workers * self.gpu_share if self.settings.device == "cuda" else 0.0

    def unfinished(self) -> tuple[Path, ...]:
        """Return the folders of the trials that have not ended."""
        return tuple(folder for folder in self.trials if not read_status(folder).state.has_ended)

    def only(self, folders: tuple[Path, ...]) -> "CohortRun":
        """Return the run of some of the trials."""
        return replace(self, trials={folder: self.trials[folder] for folder in folders})


def cuts(size: int, most: int) -> list[int]:
    """Return where to cut a sequence into as few parts as may be, whose sizes differ by one at most."""
    number = -(-size // most)
    return [size * part // number for part in range(number + 1)]
