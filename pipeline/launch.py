"""Starts Ray on this machine or joins a cluster, and runs one trial under Ray Train.

Nothing is left behind: a local Ray listens on 127.0.0.1 alone, guarded by a token that exists only
in the environment of its processes, and keeps its files in a directory of its own.
"""

import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from pipeline.capacity import Request, refuse_impossible
from pipeline.diary import HUNG, events
from pipeline.hang import PATIENCE_S, HangCallback
from pipeline.mirror import Mirror
from pipeline.rungs import Rungs
from pipeline.scratch import scratch_folder
from pipeline.session import TrialError
from pipeline.settings import TrialSettings
from pipeline.trainer import OURS, Trainer, explain
from pipeline.worker import Alone, train_loop

DRIVER = "tune_driver"
"""Custom resource of the head node: one per trial driver, which thus takes no CPU from the workers."""

HEAD = "node:__internal_head__"
"""Resource every head node has (amount 1); stands in for ``DRIVER`` on a cluster started without it."""

WORKER_FAILURES = 2
"""Restarts of a trial whose workers die or hang; a third time has a cause that stays."""

OBJECT_STORE_BYTES = 150 * 2**20
"""Trials exchange file names, not tensors; Ray's default would reserve 30 % of the memory."""

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Odd name: set to 0 it makes Ray bind to 127.0.0.1 alone, on Linux too."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new engine prints boxes even when told to be silent
    "RAY_TRAIN_METRICS_ENABLED": "0",  # no Prometheus here
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about hiding GPUs
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative MLflow or cache path would scatter over the trials
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # rows are the record, not Tune's CSV and TensorBoard files
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # tracebacks of drivers that died; the study says so in a sentence
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would wait for its trials to end; files tell us what is done
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Settings of Ray that differ from its defaults everywhere; what the user has set stays."""

LOCAL = {
    # Ray Train looks for reports, ends and deaths this often; its default of 2 s costs 5 s per trial.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # On one machine a worker that cannot start will not start later either.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody preempts this machine; saves an actor per trial
    _LOOPBACK: "0",
    "RAY_AUTH_MODE": "token",
    "GLOO_SOCKET_IFNAME": "lo",
    OURS: "1",
}
"""Further settings of a Ray that we start ourselves."""


@dataclass(frozen=True)
class Finished:
    """What came of a trial under Ray Train.

    Attributes:
        error: empty if it is done, otherwise one sentence.
        details: traceback of the error.
    """

    error: str = ""
    details: str = ""


@contextmanager
def ray_session(cpus: int, gpus: int = 0, drivers: int = 1) -> Iterator[dict[str, float]]:
    """Start Ray on this machine, or join the cluster that ``RAY_ADDRESS`` names.

    Args:
        cpus: logical CPUs of a local Ray; workers reserve one per torch thread.
        gpus: GPUs of a local Ray.
        drivers: trial drivers that may run at once.

    Yields:
        The resources a trial driver asks for.
    """
    if os.environ.get("RAY_ADDRESS"):
        with _environment(QUIET):
            ray.init(log_to_driver=False, logging_level="WARNING")
            try:
                yield {DRIVER: 1} if DRIVER in ray.cluster_resources() else {HEAD: 1e-3}
            finally:
                ray.shutdown()
        return
    with scratch_folder("ray") as scratch, _private_environment(scratch):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=gpus,
                resources={DRIVER: drivers},
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level="WARNING",
            )
            yield {DRIVER: 1}
        finally:
            ray.shutdown()


@contextmanager
def _private_environment(scratch: Path) -> Iterator[None]:
    """Set up what a local Ray reads.

    A directory of its own keeps away from the stale /tmp/ray of a Ray that was killed; a token in the
    environment keeps away from ~/.ray/auth_token.
    """
    private = {"RAY_TMPDIR": str(scratch), "RAY_AUTH_TOKEN": secrets.token_hex(32)} | _bytecode(scratch)
    with _environment(QUIET), _environment(LOCAL), _environment(private, force=True):
        _reread_environment()
        yield


def _bytecode(scratch: Path) -> dict[str, str]:
    """Let Ray's processes keep compiled modules where the environment forbids it and nobody has compiled.

    A trial starts three Python processes; each would compile torch and Ray anew, which costs 7 s of CPU.
    """
    if not sys.dont_write_bytecode or Path(ray.__cached__).exists():
        return {}
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(scratch / "pycache")}


def _reread_environment() -> None:
    """Make Ray, which read the environment when it was imported, look again (private to Ray; pinned)."""
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = os.environ[_LOOPBACK] != "0"
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _environment(values: dict[str, str], force: bool = False) -> Iterator[None]:
    """Set environment variables that are not set yet (or all of them), and put things back afterwards."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update({k: v for k, v in values.items() if force or before[k] is None})
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def run_under_ray(
    settings: TrialSettings,
    folder: Path,
    recipe: str = "",
    rungs: Rungs | None = None,
    gpu_share: float = 1.0,
    patience_s: float = PATIENCE_S,
    mirror: Mirror | None = None,
) -> Finished:
    """Run one trial to its end under Ray Train; Ray is up already.

    A folder with checkpoints is resumed. Workers that die are replaced and resume likewise.

    Args:
        settings: the trial.
        folder: its folder ``.../trials/<trial name>``, on storage that all workers see.
        recipe: digest of the study's recipe.
        rungs: where it is measured before its end, and may be stopped.
        gpu_share: part of a GPU that a worker gets; below 1 it has no more than this part of the memory.
        patience_s: silence in mid-training after which a trial counts as hung, ``pipeline.hang``; 0: never.
        mirror: of the study, if it is kept at a URI, too.

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
        HangCallback(folder, patience_s, far=mirror is not None),
        train_loop,
        train_loop_config={
            "settings": settings.to_dict(),
            "folder": str(folder),
            "recipe": recipe,
            "rungs": (rungs or Rungs()).to_dict(),
            "gpu_share": gpu_share,
            "mirror": mirror,
        },
        torch_config=Alone() if settings.workers == 1 else TorchConfig(backend="nccl" if cuda else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=cuda,
            resources_per_worker=_worker_resources(settings, gpu_share),
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=FailureConfig(max_failures=WORKER_FAILURES),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(settings.threads)}},
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
    why = [event.why for event in events(folder) if event.what == HUNG and event.time >= since]
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
                name: Request(settings.workers, tuple(_worker_resources(settings, gpu_share).items()))
                for name, settings in trials.items()
            }
        )


def _worker_resources(settings: TrialSettings, gpu_share: float) -> dict[str, float]:
    resources: dict[str, float] = {"CPU": settings.threads}
    if settings.device == "cuda":
        resources["GPU"] = gpu_share
    return resources


def train_one(settings: TrialSettings, folder: Path) -> None:
    """Start Ray, run one trial, stop Ray.

    Raises:
        TrialError: the trial failed; the message says why.
    """
    gpus = settings.workers if settings.device == "cuda" else 0
    with ray_session(cpus=settings.workers * settings.threads, gpus=gpus):
        check_capacity({folder.name: settings})
        finished = run_under_ray(settings, folder)
    if finished.error:
        raise TrialError(finished.error)
