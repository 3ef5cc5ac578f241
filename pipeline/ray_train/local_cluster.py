"""A Ray of our own on this machine, or the cluster that ``RAY_ADDRESS`` names.

Nothing is left behind: a local Ray listens on 127.0.0.1 alone, guarded by a token that exists only
in the environment of its processes, and keeps its files in a directory of its own."""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from pipeline.ray_train.trainer import OURS
from pipeline.storage.temporary import temporary_folder

DRIVER = "tune_driver"
"""Custom resource of the head node: one per trial driver, which thus takes no CPU from the workers."""


HEAD = "node:__internal_head__"
"""Resource every head node has (amount 1); stands in for ``DRIVER`` on a cluster started without it."""


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
    with temporary_folder("ray") as scratch, _private_environment(scratch):
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
