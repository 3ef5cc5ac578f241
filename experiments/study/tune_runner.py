"""Run the trials of a recipe under Ray Tune; trials that are done are skipped.

Tune starts a driver function per trial, and the driver runs Ray Train: Ray supports no other nesting.
Drivers take a resource of the head node and no CPU. The files of a trial say how far it is, not Tune: a
study that was killed at any moment is started again and goes on.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from experiments.recipes.recipe import Recipe
from experiments.storage.study_folder import StudyFolder, settings_of
from experiments.study.background_sync import BackgroundSync
from experiments.study.progress import StudyProgress
from experiments.study.trial_order import free_slot, in_running_order
from experiments.terminal import Terminal
from pipeline.config.early_stopping import EarlyStopping
from pipeline.ray_train.hang_detection import HANG_TIMEOUT_S
from pipeline.ray_train.launch import Finished, check_capacity, run_under_ray
from pipeline.ray_train.local_cluster import ray_session
from pipeline.runtime.event_log import describe_restarts
from pipeline.runtime.resource_errors import is_full_disk, no_room
from pipeline.storage.remote import StorageError
from pipeline.storage.sync import StudySync
from pipeline.storage.temporary import temporary_folder
from pipeline.storage.trial_status import TrialState

DRIVER_FAILURES = 1
"""Restarts of a driver that dies: it holds no state, and a second death has a cause that stays."""


@dataclass(frozen=True)
class ExecutionOptions:
    """How trials are run; none of it changes what they measure, apart from times.

    Attributes:
        concurrent: trials at once.
        gpu_share: part of a GPU that each worker gets.
        tracking: send rows to MLflow while trials run.
        gpu_hours: no trial starts once the study has used as many.
        hang_timeout_s: seconds without progress after which a trial counts as hung; 0: never.
        study_sync: second copy of the study, at a URI; None if there is none.
    """

    concurrent: int = 1
    gpu_share: float = 1.0
    tracking: bool = True
    gpu_hours: float = math.inf
    hang_timeout_s: float = HANG_TIMEOUT_S
    study_sync: StudySync | None = None


@dataclass(frozen=True)
class Outcome:
    """How trials ended.

    Attributes:
        done: names of the trials that are done, in recipe order.
        failed: name -> why, one sentence.
        unfinished: names of trials that were interrupted or never started.
        ran: trials that this call ran; the others were done before.
    """

    done: tuple[str, ...]
    failed: dict[str, str]
    unfinished: tuple[str, ...]
    ran: int

    @property
    def complete(self) -> bool:
        """Whether every trial is done."""
        return not self.failed and not self.unfinished


def run_trials(
    recipe: Recipe,
    folder: StudyFolder,
    console: Terminal,
    running: ExecutionOptions,
    names: Sequence[str] | None = None,
    early_stopping: EarlyStopping | None = None,
) -> Outcome:
    """Run what is not done of a study that ``preflight`` has accepted.

    Args:
        recipe: the study.
        folder: its folder, claimed by this recipe.
        console: where progress is shown.
        running: how.
        names: the trials; None means all. They run seed after seed, in random order within each.
        early_stopping: where they are measured before their end, and may be stopped.

    Returns:
        The state of these trials afterwards.
    """
    chosen = list(recipe.named_trials()) if names is None else list(names)
    todo = [name for name in in_running_order(recipe, chosen) if not folder.is_complete(name)]
    if todo:
        for name in todo:
            folder.reopen(name)
        with (
            StudyProgress(console, len(chosen), len(chosen) - len(todo)) as progress,
            BackgroundSync(folder.path, progress, running.study_sync, running.tracking) as background_sync,
        ):
            watcher = _Watcher(folder, progress, background_sync)
            _tune(recipe, folder, todo, running, early_stopping or EarlyStopping(), watcher)
    states = {name: folder.state(name) for name in chosen}
    return Outcome(
        done=tuple(name for name, state in states.items() if state == TrialState.COMPLETE),
        failed={name: folder.failure(name) for name, state in states.items() if state == TrialState.FAILED},
        unfinished=tuple(name for name, state in states.items() if not state.has_ended),
        ran=len(todo),
    )


def run_trial_driver(config: dict[str, Any]) -> None:
    """Run one trial and mark its end; runs in a Tune trial.

    If the trial fails, the driver does not: the study goes on and reports the failure.

    Args:
        config: ``trial``, ``folder`` of the study, ``recipe``, its digest, ``early_stopping``, ``gpu_share``,
            ``gpu_hours``, the budget, ``hang_timeout_s``, and ``study_sync``, or None.
    """
    folder, name = StudyFolder(Path(config["folder"])), config["trial"]
    left = ""
    if not folder.is_complete(name) and folder.gpu_hours() < config["gpu_hours"]:
        try:
            with free_slot(folder.path) as slot:
                _run_one(config, folder, name, slot)
        except OSError as error:  # there is no room for the mark either; the folder tells how far it is
            if not is_full_disk(error):
                raise
            left = no_room(folder.trial(name))
    tune.report({"done": folder.is_complete(name), "left": left})


def _run_one(config: dict[str, Any], folder: StudyFolder, name: str, slot: int) -> None:
    settings, share = settings_of(folder.trial(name)), config["gpu_share"]
    begun = folder.begin(name, settings.num_workers * share if settings.device == "cuda" else 0.0)
    early_stopping = EarlyStopping.from_dict(config["early_stopping"])
    study_sync: StudySync | None = config["study_sync"]
    finished = run_under_ray(
        settings,
        folder.trial(name),
        config["recipe"],
        early_stopping,
        share,
        config["hang_timeout_s"],
        study_sync,
        slot,
    )
    if study_sync is None:
        folder.finish(name, finished.error, finished.details)
        return
    unit = folder.trial(name).relative_to(study_sync.folder).as_posix()
    try:
        study_sync.download(unit, heavy=False)  # the worker may have been elsewhere
    except StorageError as error:
        finished = Finished(finished.error or str(error), finished.details)
    folder.finish(name, finished.error, finished.details, begun)
    with suppress(StorageError):  # then it is copied with the next trial, or at the end of the study
        study_sync.upload(unit)


def _tune(
    recipe: Recipe,
    folder: StudyFolder,
    todo: Sequence[str],
    running: ExecutionOptions,
    early_stopping: EarlyStopping,
    watcher: "_Watcher",
) -> None:
    """Start Ray, run the drivers under Tune, stop Ray."""
    settings = [recipe.named_trials()[name] for name in todo]
    concurrent = min(running.concurrent, len(todo))
    cpus = concurrent * max(s.num_workers * s.torch_threads for s in settings)
    workers = max(s.num_workers if s.device == "cuda" else 0 for s in settings)
    gpus = math.ceil(concurrent * workers * running.gpu_share - 1e-2)  # a share of 1/3 is 0.3333 to Ray
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the result files that we do not want
    # Tune keeps its own state in the scratch folder; ours is in the study's.
    with temporary_folder("tune") as scratch, ray_session(cpus, gpus, drivers=concurrent) as resources:
        check_capacity(dict(zip(todo, settings, strict=True)), running.gpu_share)
        tune.Tuner(
            tune.with_resources(run_trial_driver, resources),
            param_space={
                "trial": tune.grid_search(list(todo)),
                "folder": str(folder.path.resolve()),
                "recipe": recipe.digest,
                "early_stopping": early_stopping.to_dict(),
                "gpu_share": running.gpu_share,
                "gpu_hours": running.gpu_hours,
                "hang_timeout_s": running.hang_timeout_s,
                "study_sync": running.study_sync,
            },
            tune_config=tune.TuneConfig(
                max_concurrent_trials=concurrent,
                reuse_actors=True,  # a new driver process costs 5 s of CPU per trial
                trial_name_creator=lambda trial: str(trial.config["trial"]),
                trial_dirname_creator=lambda trial: str(trial.config["trial"]),
            ),
            run_config=tune.RunConfig(
                name=folder.path.name,
                storage_path=str(scratch),
                verbose=0,
                callbacks=[watcher],
                failure_config=tune.FailureConfig(max_failures=DRIVER_FAILURES),
            ),
        ).fit()


class _Watcher(tune.Callback):
    """Passes the events of Tune to the progress display and to tracking."""

    def __init__(self, folder: StudyFolder, progress: StudyProgress, background_sync: BackgroundSync) -> None:
        self._folder, self._progress, self._background_sync = folder, progress, background_sync

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing to pickle: Tune saves its callbacks for a restore that files make needless."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show a trial that starts, and send its rows from now on."""
        name = trial.config["trial"]
        self._progress.started(
            name, self._folder.trial(name), len(settings_of(self._folder.trial(name)).conditions)
        )
        self._background_sync.trial_started(name)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show how a trial ended, and send its rows."""
        name = trial.config["trial"]
        failed = self._folder.state(name) == TrialState.FAILED
        left = str((trial.last_result or {}).get("left", ""))
        if again := describe_restarts(self._folder.trial(name)):
            self._progress.say(f"{name} was {again}")
        self._progress.ended(name, self._folder.failure(name) if failed else left)
        self._background_sync.trial_ended(name)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show that a driver died and is started again."""
        self._progress.say(f"the process that drove {trial.config['trial']} died; it is started again")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Mark a trial whose driver died more often than is forgiven."""
        name = trial.config["trial"]
        reason = "the process that drove the trial died"
        try:
            self._folder.finish(name, reason, str(trial.get_pickled_error()))
        except OSError as error:  # a trial without a mark is unfinished, and the same command goes on with it
            reason = f"{reason}, and that could not be written down ({error})"
        self._progress.ended(name, reason)
