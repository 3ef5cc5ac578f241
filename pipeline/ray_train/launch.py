"""Starts Ray on this machine or joins a cluster, and runs one trial under Ray Train.

Nothing is left behind: a local Ray listens on 127.0.0.1 alone, guarded by a token that exists only
in the environment of its processes, and keeps its files in a directory of its own.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from pipeline.config.early_stopping import EarlyStopping
from pipeline.config.settings import TrialSettings
from pipeline.errors import TrialError
from pipeline.ray_train.capacity import Request, refuse_impossible
from pipeline.ray_train.hang_detection import HANG_TIMEOUT_S, HangCallback
from pipeline.ray_train.local_cluster import ray_session
from pipeline.ray_train.trainer import Trainer, explain
from pipeline.ray_train.worker import SingleProcessBackend, train_loop
from pipeline.runtime.event_log import HUNG, read_events
from pipeline.storage.sync import StudySync

WORKER_FAILURES = 2
"""Restarts of a trial whose workers die or hang; a third time has a cause that stays."""


@dataclass(frozen=True)
class Finished:
    """What came of a trial under Ray Train.

    Attributes:
        error: empty if it is done, otherwise one sentence.
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
    patience_s: float = HANG_TIMEOUT_S,
    study_sync: StudySync | None = None,
) -> Finished:
    """Run one trial to its end under Ray Train; Ray is up already.

    A folder with checkpoints is resumed. Workers that die are replaced and resume likewise.

    Args:
        settings: the trial.
        folder: its folder ``.../trials/<trial name>``, on storage that all workers see.
        recipe: digest of the study's recipe.
        early_stopping: where it is measured before its end, and may be stopped.
        gpu_share: part of a GPU that a worker gets; below 1 it has no more than this part of the memory.
        patience_s: silence in mid-training after which a trial counts as hung; 0: never.
        study_sync: of the study, if it is kept at a URI, too.

    Returns:
        Whether it finished, and if not, why.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # Ray's own list of checkpoints: with it Ray refuses to go on, once we have dropped the oldest of them
    (folder / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME).unlink(missing_ok=True)
    began = time.time()
    cuda = settings.device == "cuda"
    trainer = Trainer(
        HangCallback(folder, patience_s, far=study_sync is not None),
        train_loop,
        train_loop_config={
            "settings": settings.to_dict(),
            "folder": str(folder),
            "recipe": recipe,
            "early_stopping": (early_stopping or EarlyStopping()).to_dict(),
            "gpu_share": gpu_share,
            "study_sync": study_sync,
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
        ),
    )
    try:
        refused = trainer.fit().return_value
    except TrainingFailedError as error:
        said, details = explain(error)
        return Finished(_hung(folder, began) or said, details)
    return Finished(**refused) if refused else Finished()


def _hung(folder: Path, since: float) -> str:
    """Say how often the trial hung since a time; empty if it did not."""
    why = [event.why for event in read_events(folder) if event.what == HUNG and event.time >= since]
    return f"it hung {len(why)} times; at last there was {why[-1]}" if why else ""


def check_capacity(trials: Mapping[str, TrialSettings], gpu_share: float = 1.0) -> None:
    """Refuse trials that the cluster can never serve; a local Ray is made to fit.

    Args:
        trials: name -> settings.
        gpu_share: part of a GPU that a worker gets.

    Raises:
        CapacityError: the first trial that nothing in the cluster can serve.
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
