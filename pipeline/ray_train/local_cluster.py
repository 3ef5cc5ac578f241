"""A Ray of our own on this machine, or the cluster that ``RAY_ADDRESS`` names.

A local Ray leaves nothing behind. It listens on 127.0.0.1 only, asks for a token that exists only in the
environment of its processes, and keeps its files in a temporary folder.

Ray reads some environment variables when it is imported and others when it first uses them, and keeps what
it has read. So ``prepare_ray`` sets them all, once per process, before anything imports Ray, and this file
imports Ray in functions only. Ray reads those that differ between sessions of one process at each start.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.runtime.cores import available_cores
from pipeline.storage.paths import DEFAULT_HOME, home
from pipeline.storage.temporary import temporary_folder

DRIVER = "tune_driver"
"""Custom resource of the head node: one per trial driver, so that a driver takes no CPU from the workers."""

OBJECT_STORE_BYTES = 150 * 2**20
"""Trials exchange file names, not tensors; Ray's default would reserve 30 % of the memory."""

LOCAL_RAY = "BIASWISE_LOCAL_RAY"
"""Environment variable, set in all processes of a local Ray."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output engine prints boxes even with verbose=0
    "RAY_TRAIN_METRICS_ENABLED": "0",  # there is no Prometheus
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about hiding GPUs
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of MLflow and of caches mean the same in all trials
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # rows are the record, not Tune's CSV and TensorBoard files
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # tracebacks of dead drivers; the study reports them in a sentence
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would wait for its trials to end; the files say what is done
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Settings of Ray that differ from its defaults everywhere; a user's own setting wins."""

LOCAL = {
    # Ray Train looks for reports, ends and deaths this often; its default of 2 s costs 5 s per trial.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # On one machine a worker that cannot start now will not start later either.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    # Ray would start a Python process for each CPU in advance, and our actors, which have environment
    # variables of their own, could use none of them.
    "RAY_prestart_worker_first_driver": "0",
    # As many processes may start at once as there are cores. By default it is the number of CPUs that Ray may
    # give away, so that a single cohort's processes would wait for one another.
    "RAY_worker_maximum_startup_concurrency": str(available_cores()),
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # this machine gets no notice of preemption; saves an actor
    # Listen on 127.0.0.1 only (a private meaning: ray_internals.LOOPBACK_VARIABLE has its test).
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "GLOO_SOCKET_IFNAME": "lo",
    LOCAL_RAY: "1",
}
"""Further settings of a local Ray; a user's own setting wins."""


def prepare_ray() -> None:
    """Set the environment variables that Ray reads; call it before anything imports Ray.

    With ``RAY_ADDRESS`` they are those of a process that joins a cluster, else those of a local Ray. A second
    call changes nothing.

    Raises:
        RuntimeError: Ray was imported before the first call, so it has read its settings already.
    """
    settings = dict(QUIET)
    if not os.environ.get("RAY_ADDRESS"):
        if "ray" in sys.modules and not LOCAL.keys() <= os.environ.keys():
            raise RuntimeError("Ray was imported before its settings were made; call prepare_ray() first")
        # One token for all sessions of this process, because Ray keeps the first one that it reads.
        settings |= LOCAL | {"RAY_AUTH_TOKEN": os.urandom(32).hex()}
    for name, value in settings.items():
        os.environ.setdefault(name, value)


@contextmanager
def ray_session(cpus: int, gpus: int = 0, drivers: int = 1) -> Iterator[dict[str, float]]:
    """Start Ray on this machine, or join the cluster that ``RAY_ADDRESS`` names.

    Args:
        cpus: logical CPUs of a local Ray; workers reserve one per torch thread.
        gpus: GPUs of a local Ray.
        drivers: trial drivers that may run at once.

    Yields:
        The resources that a trial driver asks for.

    Raises:
        RuntimeError: ``prepare_ray`` was not called before Ray was imported.
    """
    prepare_ray()
    import ray

    from pipeline.ray_train.ray_internals import HEAD_RESOURCE

    if os.environ.get("RAY_ADDRESS"):
        with _own_sigterm():
            ray.init(log_to_driver=False, logging_level="WARNING", runtime_env=_told_home())
        try:
            yield {DRIVER: 1} if DRIVER in ray.cluster_resources() else {HEAD_RESOURCE: 1e-3}
        finally:
            ray.shutdown()
        return
    # A folder of its own keeps away from the stale /tmp/ray of a Ray that was killed.
    with (
        temporary_folder("ray") as scratch,
        _environment({"RAY_TMPDIR": str(scratch), DEFAULT_HOME: str(home())} | _bytecode(scratch)),
    ):
        try:
            with _own_sigterm():
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


def _told_home() -> dict[str, dict[str, str]]:
    """Return a runtime environment that tells the workers which folder is meant.

    A job's own variables reach its workers without it.
    """
    return {} if DEFAULT_HOME in os.environ else {"env_vars": {DEFAULT_HOME: str(home())}}


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM: Ray puts one there that ends the process without a word."""
    if threading.current_thread() is not threading.main_thread():  # no other thread may set a handler
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _bytecode(scratch: Path) -> dict[str, str]:
    """Return variables that let Ray's processes keep compiled modules where they otherwise could not.

    A trial starts three Python processes. Each would compile torch and Ray anew, which costs 7 s of CPU.
    """
    import ray

    if not sys.dont_write_bytecode or Path(ray.__cached__).exists():
        return {}
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(scratch / "pycache")}


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
