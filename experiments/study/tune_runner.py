"""Run the trials of a recipe under Ray Tune, in cohorts; trials that are done are skipped.

Tune starts a driver function per cohort, and the driver runs Ray Train: Ray supports no other nesting.
Drivers take a resource of the head node and no CPU. The files of a trial say how far it is, not Tune: a
study that was killed at any moment is started again and goes on.
"""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from experiments.packing.policy import LIMIT_FILE, cohort_limit, remember_limit
from experiments.recipes.recipe import Recipe
from experiments.storage.study_folder import StudyFolder, settings_of
from experiments.study.background_sync import BackgroundSync
from experiments.study.progress import StudyProgress
from experiments.study.trial_order import cohorts_of, free_slot, in_running_order
from experiments.study.tune_watcher import SAID, StudyWatcher
from experiments.terminal import Terminal
from pipeline.config.early_stopping import EarlyStopping
from pipeline.ray_train.cohort_run import CohortRun
from pipeline.ray_train.hang_detection import HANG_TIMEOUT_S
from pipeline.ray_train.launch import check_capacity, run_under_ray
from pipeline.ray_train.local_cluster import ray_session
from pipeline.ray_train.reservations import free_abandoned
from pipeline.runtime.cores import available_cores
from pipeline.runtime.resource_errors import is_full_disk, no_room
from pipeline.storage.sync import StudySync
from pipeline.storage.temporary import temporary_folder
from pipeline.storage.trial_status import TrialState

DRIVER_FAILURES = 1
"""Restarts of a driver that dies: it holds no state, and a second death has a cause that stays."""


@dataclass(frozen=True)
class ExecutionOptions:
    """How trials are run; none of it changes what they measure, apart from times.

    Attributes:
        concurrent: groups of workers at once.
        arms_per_worker: most trials that a group runs together, as a cohort; None: so many that all groups
            have work.
        gpu_share: part of a GPU that each worker gets.
        tracking: send rows to MLflow while trials run.
        gpu_hours: no trial starts once the study has used as many.
        hang_timeout_s: seconds without progress after which a trial counts as hung; 0: never.
        study_sync: second copy of the study, at a URI; None if there is none.
    """

    concurrent: int = 1
    arms_per_worker: int | None = None
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
            if (limit := cohort_limit(folder)) < len(todo):
                progress.say(
                    f"at most {limit} trials run together: more did not fit into memory before "
                    f"(to try again, delete {folder.path / LIMIT_FILE})"
                )
            watcher = StudyWatcher(folder, progress, background_sync)
            _tune(recipe, folder, todo, running, early_stopping or EarlyStopping(), watcher)
    states = {name: folder.state(name) for name in chosen}
    return Outcome(
        done=tuple(name for name, state in states.items() if state == TrialState.COMPLETE),
        failed={name: folder.failure(name) for name, state in states.items() if state == TrialState.FAILED},
        unfinished=tuple(name for name, state in states.items() if not state.has_ended),
        ran=len(todo),
    )


def run_cohort_driver(config: dict[str, Any]) -> None:
    """Run the trials of a cohort that have not ended; runs in a Tune trial.

    If trials fail, the driver does not: the study goes on and reports the failures.

    Args:
        config: ``trials``, names; ``folder`` of the study; ``running``, ``ExecutionOptions``; and ``recipe``
            (its digest) and ``early_stopping`` as in ``CohortRun``.
    """
    folder, running = StudyFolder(Path(config["folder"])), config["running"]
    names = [name for name in config["trials"] if not folder.state(name).has_ended]
    left = ""
    if names and folder.gpu_hours() >= running.gpu_hours:
        left = f"not run: the study has used its {running.gpu_hours:g} GPU hours"
    elif names:
        try:
            with free_slot(folder.path) as slot:
                run = CohortRun(
                    {folder.trial(name): settings_of(folder.trial(name)) for name in names},
                    config["recipe"],
                    config["early_stopping"],
                    running.gpu_share,
                    running.hang_timeout_s,
                    running.study_sync,
                    slot,
                    _cores(running.concurrent),
                )
                run_under_ray(
                    run,
                    lambda sentence: tune.report({SAID: sentence}),
                    cohort_limit(folder),
                    partial(remember_limit, folder),
                )
        except OSError as error:  # there is no room for the mark either; the folder tells how far it is
            if not is_full_disk(error):
                raise
            left = no_room(folder.trial(names[0]))
    tune.report({"left": left})


def _cores(concurrent: int) -> int:
    """Return the cores of each of the groups of workers that run at once; on a cluster nobody knows."""
    return 1 if os.environ.get("RAY_ADDRESS") else max(1, available_cores() // concurrent)


def _tune(
    recipe: Recipe,
    folder: StudyFolder,
    todo: Sequence[str],
    running: ExecutionOptions,
    early_stopping: EarlyStopping,
    watcher: StudyWatcher,
) -> None:
    """Start Ray, run the drivers under Tune, stop Ray."""
    settings = [recipe.named_trials()[name] for name in todo]
    cohorts = cohorts_of(recipe, todo, running.arms_per_worker, running.concurrent, cohort_limit(folder))
    concurrent = min(running.concurrent, len(cohorts))
    cpus = concurrent * max(s.num_workers * s.torch_threads for s in settings)
    workers = max(s.num_workers if s.device == "cuda" else 0 for s in settings)
    gpus = math.ceil(concurrent * workers * running.gpu_share - 1e-2)  # a share of 1/3 is 0.3333 to Ray
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the result files that we do not want
    # Tune keeps its own state in the scratch folder; ours is in the study's.
    with temporary_folder("tune") as scratch, ray_session(cpus, gpus, drivers=concurrent) as resources:
        check_capacity(dict(zip(todo, settings, strict=True)), running.gpu_share)
        tune.Tuner(
            tune.with_resources(run_cohort_driver, resources),
            param_space={
                "trials": tune.grid_search(cohorts),
                "folder": str(folder.path.resolve()),
                "recipe": recipe.digest,
                "early_stopping": early_stopping,
                "running": replace(running, concurrent=concurrent),
            },
            tune_config=tune.TuneConfig(
                max_concurrent_trials=concurrent,
                reuse_actors=True,  # a new driver process costs 5 s of CPU per cohort
                trial_name_creator=lambda trial: str(trial.config["trials"][0]),
                trial_dirname_creator=lambda trial: str(trial.config["trials"][0]),
            ),
            run_config=tune.RunConfig(
                name=folder.path.name,
                storage_path=str(scratch),
                verbose=0,
                callbacks=[watcher],
                failure_config=tune.FailureConfig(max_failures=DRIVER_FAILURES),
            ),
        ).fit()
        free_abandoned()  # of controllers that were killed since the last look
