"""Runs a cohort of trials under Ray Train, on this machine or on a cluster; one trial is a cohort, too.

Drivers import this file. Without torch they start seconds earlier, so what needs it is imported in functions.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError

from pipeline.config.early_stopping import EarlyStopping
from pipeline.config.settings import TrialSettings
from pipeline.errors import TrialError, TrialMemoryError
from pipeline.ray_train.capacity import Request, refuse_impossible
from pipeline.ray_train.cohort_run import CohortRun, cuts
from pipeline.ray_train.hang_detection import HangWatch
from pipeline.ray_train.local_cluster import LOCAL_RAY, ray_session
from pipeline.ray_train.ray_internals import (
    leave_out_idle_actors,
    original_error,
    single_worker_trainer,
    worker_group_callback,
)
from pipeline.ray_train.reservations import free_abandoned
from pipeline.ray_train.worker import train_loop
from pipeline.runtime.event_log import HUNG, read_events
from pipeline.storage.remote import StorageError
from pipeline.storage.trial_sessions import begin_session, end_session
from pipeline.storage.trial_status import read_status

WORKER_FAILURES = 2
"""Restarts of workers that die or hang; a third failure has a cause that stays."""

NO_END = "its workers ended without a word about it; start the same command again"
"""Why a trial failed that Ray Train calls finished and that has no mark of its end."""


def _to_nobody(_: str) -> None:
    """Say a sentence to nobody."""


@dataclass(frozen=True)
class Finished:
    """The end of a group of workers.

    Attributes:
        error: why the trials that have not ended have not, one sentence; empty if all have.
        details: traceback of the error.
        out_of_memory: whether memory ran out, so that fewer trials may fit.
    """

    error: str = ""
    details: str = ""
    out_of_memory: bool = False


def run_under_ray(
    run: CohortRun,
    say: Callable[[str], None] = _to_nobody,
    most: int = sys.maxsize,
    remember: Callable[[int], None] = lambda _: None,
) -> None:
    """Run trials to their ends under Ray Train, and mark in their statuses how they ended; Ray has started.

    Folders with checkpoints are resumed. Workers that die are replaced and resume likewise. Trials that do
    not fit into memory together run in parts of half the size, one after the other, from their newest
    checkpoints.

    Args:
        run: the trials, and how they run.
        say: called with a sentence if the trials do not run together.
        most: trials that fit into memory together, as far as is known.
        remember: called with the new ``most`` when trials did not fit.
    """
    todo = run.folders
    if most < len(todo):
        say(f"{len(todo)} trials run in parts of at most {most}: more did not fit into memory before")
    while todo:
        number = cuts(len(todo), most)[1]
        part, todo = run.only(todo[:number]), todo[number:]
        left, finished = _run_part(part)
        if left:
            most, todo = (len(left) + 1) // 2, (*left, *todo)
            remember(most)
            say(
                f"{len(left)} trials did not fit into memory together ({finished.error}); from here on "
                f"{'a trial runs alone' if most == 1 else f'at most {most} run together'}"
            )


def _run_part(run: CohortRun) -> tuple[tuple[Path, ...], Finished]:
    """Run trials together; return those that have not ended because memory ran out."""
    for folder in run.folders:
        begin_session(folder, run.gpus, len(run.trials))
        _upload(run, folder)  # the workers may be elsewhere
    finished = _fit(run)
    left = _ended_elsewhere(run, finished)
    if finished.out_of_memory and len(run.trials) > 1 and left:
        return left, finished
    for folder in left:
        end_session(folder, finished.error or NO_END, finished.details, run.folders)
    for folder in run.folders:
        _upload(run, folder)
    return (), finished


def _ended_elsewhere(run: CohortRun, finished: Finished) -> tuple[Path, ...]:
    """Fetch what the workers have written if they were elsewhere; return the trials that have not ended."""
    sync = run.study_sync
    for folder in run.folders if sync else ():
        assert sync is not None
        try:
            sync.download(folder.relative_to(sync.folder).as_posix(), heavy=False)
        except StorageError as error:  # what is known here stands; trials that are to be halved go on
            if not read_status(folder).state.has_ended and not finished.out_of_memory:
                end_session(folder, finished.error or str(error), finished.details, run.folders)
    return run.unfinished()


def _upload(run: CohortRun, folder: Path) -> None:
    """Copy a trial to where the study is kept; if that fails, it is copied at the end of the study."""
    if run.study_sync is not None:
        with suppress(StorageError):
            run.study_sync.upload(folder.relative_to(run.study_sync.folder).as_posix())


def _fit(run: CohortRun) -> Finished:
    """Run Ray Train until the trials have ended or cannot go on."""
    place = run.folders[0]  # there Ray Train tries whether all workers see the storage
    began = time.time()
    trainer = _trainer(run.settings)(
        train_loop,
        train_loop_config={"run": run},
        scaling_config=ScalingConfig(
            num_workers=run.settings.num_workers,
            use_gpu=run.settings.device == "cuda",
            resources_per_worker=_worker_resources(run.settings, run.gpu_share),
        ),
        run_config=RunConfig(
            name=place.name,
            storage_path=str(place.parent),
            failure_config=FailureConfig(max_failures=WORKER_FAILURES),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(run.settings.torch_threads)}},
            callbacks=[
                worker_group_callback(
                    HangWatch(run.folders, run.hang_timeout_s, other_disk=run.study_sync is not None)
                )
            ],
        ),
    )
    leave_out_idle_actors(trainer, local=LOCAL_RAY in os.environ)
    free_abandoned()  # what earlier workers of these trials hold, if their controller was killed
    try:
        refused = trainer.fit().return_value
    except TrainingFailedError as error:
        sentence, details = explain(error)
        hung = "" if _raised(error) else _hangs(run.unfinished(), began)
        return Finished(hung or sentence, details, is_out_of_memory(error))
    return Finished(**refused) if refused else Finished()


def _trainer(settings: TrialSettings) -> Callable[..., Any]:
    """Return what makes the trainer; one worker gets no process group, and its driver needs no torch."""
    if settings.num_workers == 1:
        return single_worker_trainer
    from ray.train.torch import TorchConfig, TorchTrainer

    group = TorchConfig(backend="nccl" if settings.device == "cuda" else "gloo")
    return partial(TorchTrainer, torch_config=group)


def is_out_of_memory(error: TrainingFailedError) -> bool:
    """Return whether a worker failed because memory ran out, or Ray ended it for that."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return any(
        isinstance(original_error(cause), TrialMemoryError | ray.exceptions.OutOfMemoryError)
        for cause in failures
    )


def _raised(error: TrainingFailedError) -> bool:
    """Return whether workers ended by an error of their own; those that hung were killed."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return any(original_error(cause) is not cause for cause in failures)


def explain(error: TrainingFailedError) -> tuple[str, str]:
    """Return one sentence and the traceback of the first worker that failed."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, cause = min(error.worker_failures.items())
        details = "".join(traceback.format_exception(cause))
        return f"worker {rank}: {_last_line(cause)}", details
    return _last_line(error), "".join(traceback.format_exception(error))


def _last_line(error: BaseException) -> str:
    """Return the message; if the error quotes a remote traceback, the message is its last line."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _hangs(unfinished: Sequence[Path], since: float) -> str:
    """Return how often trials have hung since a time (seconds of the epoch); empty if they have not."""
    events = read_events(unfinished[0]) if unfinished else []  # those of the others say the same
    reasons = [event.why for event in events if event.what == HUNG and event.time >= since]
    times = f" {len(reasons)} times" if len(reasons) > 1 else ""
    return f"it hung{times}; at last there was {reasons[-1]}" if reasons else ""


def check_capacity(trials: Mapping[str, TrialSettings], gpu_share: float = 1.0) -> None:
    """Refuse trials that can never run on the cluster of ``RAY_ADDRESS``; a local Ray is made to fit.

    Args:
        trials: name -> settings.
        gpu_share: part of a GPU that a worker gets.

    Raises:
        CapacityError: a trial asks for more than any machine of the cluster has; one sentence names it.
    """
    if os.environ.get("RAY_ADDRESS"):
        refuse_impossible(
            {
                name: Request(settings.num_workers, tuple(_worker_resources(settings, gpu_share).items()))
                for name, settings in trials.items()
            }
        )


def _worker_resources(settings: TrialSettings, gpu_share: float) -> dict[str, float]:
    resources: dict[str, float] = {"CPU": settings.torch_threads}
    if settings.device == "cuda":
        resources["GPU"] = gpu_share
    return resources


def train_one(settings: TrialSettings, folder: Path, early_stopping: EarlyStopping | None = None) -> None:
    """Start Ray, run one trial, stop Ray.

    Args:
        settings: the trial.
        folder: its folder.
        early_stopping: where it is measured before its end, and may be stopped; None: nowhere.

    Raises:
        TrialError: the trial failed; the message says why.
    """
    gpus = settings.num_workers if settings.device == "cuda" else 0
    with ray_session(cpus=settings.num_workers * settings.torch_threads, gpus=gpus):
        check_capacity({folder.name: settings})
        run_under_ray(
            CohortRun({folder.resolve(): settings}, early_stopping=early_stopping or EarlyStopping())
        )
    if failure := read_status(folder).error:
        raise TrialError(failure)
