"""Runs one trial under Ray Train, on this machine or on a cluster."""

import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.config.early_stopping import EarlyStopping
from pipeline.config.settings import TrialSettings
from pipeline.errors import TrialError
from pipeline.ray_train.capacity import Request, refuse_impossible
from pipeline.ray_train.hang_detection import HANG_TIMEOUT_S, HangWatch
from pipeline.ray_train.local_cluster import LOCAL_RAY, ray_session
from pipeline.ray_train.ray_internals import (
    checkpoint_list_file,
    leave_out_idle_actors,
    worker_group_callback,
)
from pipeline.ray_train.worker import SingleProcessBackend, train_loop
from pipeline.runtime.event_log import HUNG, read_events
from pipeline.storage.sync import StudySync

WORKER_FAILURES = 2
"""Restarts of a trial whose workers die or hang; a third failure has a cause that stays."""


@dataclass(frozen=True)
class Finished:
    """The end of a trial under Ray Train.

    Attributes:
        error: empty if the trial is done, otherwise one sentence.
        details: traceback of the error.
    """

    error: str = ""
    details: str = ""


def run_under_ray(
    settings: TrialSettings,
    folder: Path,
    recipe: str = "",
    early_stopping: EarlyStopping | None = None,
    gpu_share: float = 1.0,
    hang_timeout_s: float = HANG_TIMEOUT_S,
    study_sync: StudySync | None = None,
    slot: int = 0,
) -> Finished:
    """Run one trial to its end under Ray Train; Ray has been started.

    A folder with checkpoints is resumed. Workers that die are replaced and resume likewise.

    Args:
        settings: the trial.
        folder: its folder ``.../trials/<trial name>``, on storage that all workers see.
        recipe: digest of the study's recipe.
        early_stopping: the steps at which the trial is measured before its end and may be stopped.
        gpu_share: part of a GPU that a worker gets; below 1 it also gets only this part of the memory.
        hang_timeout_s: silence in training after which a trial counts as hung; 0: never.
        study_sync: of the study, if it is also kept at a URI.
        slot: which of the concurrent places of the study runs the trial, from 0.

    Returns:
        Whether the trial is done, and if not, why.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # With its own list of checkpoints Ray refuses to resume after we have deleted the oldest of them.
    (folder / checkpoint_list_file()).unlink(missing_ok=True)
    began = time.time()
    cuda = settings.device == "cuda"
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "settings": settings.to_dict(),
            "folder": str(folder),
            "recipe": recipe,
            "early_stopping": (early_stopping or EarlyStopping()).to_dict(),
            "gpu_share": gpu_share,
            "study_sync": study_sync,
            "slot": slot,
        },
        torch_config=SingleProcessBackend()
        if settings.num_workers == 1
        else TorchConfig(backend="nccl" if cuda else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=cuda,
            resources_per_worker=_worker_resources(settings, gpu_share),
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=FailureConfig(max_failures=WORKER_FAILURES),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(settings.torch_threads)}},
            callbacks=[
                worker_group_callback(HangWatch(folder, hang_timeout_s, other_disk=study_sync is not None))
            ],
        ),
    )
    leave_out_idle_actors(trainer, local=LOCAL_RAY in os.environ)
    try:
        refused = trainer.fit().return_value
    except TrainingFailedError as error:
        sentence, details = explain(error)
        return Finished(_hangs(folder, began) or sentence, details)
    return Finished(**refused) if refused else Finished()


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


def _hangs(folder: Path, since: float) -> str:
    """Return how often the trial has hung since a time (seconds of the epoch); empty if it has not."""
    reasons = [event.why for event in read_events(folder) if event.what == HUNG and event.time >= since]
    return f"it hung {len(reasons)} times; at last there was {reasons[-1]}" if reasons else ""


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


def train_one(settings: TrialSettings, folder: Path) -> None:
    """Start Ray, run one trial, stop Ray.

    Raises:
        TrialError: the trial failed; the message says why.
    """
    gpus = settings.num_workers if settings.device == "cuda" else 0
    with ray_session(cpus=settings.num_workers * settings.torch_threads, gpus=gpus):
        check_capacity({folder.name: settings})
        finished = run_under_ray(settings, folder)
    if finished.error:
        raise TrialError(finished.error)
