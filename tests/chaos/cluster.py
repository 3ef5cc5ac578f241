"""A Ray cluster of two nodes on this machine whose parts can be killed.

A head without CPUs and a worker node: what `ray start` starts, started from here so that every process is
known. Listens on 127.0.0.1 with a token.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.machine import offspring, unused_port

ROOT = Path(__file__).parents[2]

SHIM = Path(__file__).with_name("python_shim.py")

PATIENCE_S = 300
"""The nursery imports for 15 s, on a machine that does much else for two minutes."""

CPUS = 2
"""Of the worker node."""

SINGLE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # jemalloc starts a thread, which no fork takes along
    "MPLBACKEND": "Agg",
}
"""What keeps a process that is to be forked from starting threads."""

ENVIRONMENT = {
    **SINGLE,
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # odd name: bind to 127.0.0.1 alone
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # as on a local Ray: deaths are seen at once
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody preempts here; saves an actor a trial
    "BIASWISE_LOCAL_RAY": "1",  # there is no dashboard that could say who is alive
    "RAY_raylet_start_wait_time_s": "300",  # seconds; all waits are long, because other tests run beside
    "RAY_health_check_timeout_ms": "60000",
    "RAY_health_check_period_ms": "1000",  # a node that is gone is given up after five, not fifteen, seconds
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # Ray gives a head that is gone a minute
    "RAY_health_check_initial_delay_ms": "30000",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_prestart_worker_first_driver": "0",  # no spare workers
    "RAY_enable_worker_prestart": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "PYTHONPATH": str(ROOT),
    "GLOO_SOCKET_IFNAME": "lo",
}


@contextmanager
def environment(scratch: Path) -> Iterator[None]:
    """Set what Ray's processes and the nursery read, here and for all that is started from here."""
    given = {
        **ENVIRONMENT,
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": str(scratch),
        "CHAOS_NURSERY": str(scratch / "nursery"),
    }
    before = {key: value for key, value in os.environ.items() if key.startswith("RAY_") or key in given}
    for key in before:
        del os.environ[key]
    os.environ.update(given)
    try:
        yield
    finally:
        for key in [key for key in os.environ if key.startswith("RAY_") or key in given]:
            del os.environ[key]
        os.environ.update(before)


@contextmanager
def nursery(log: Path) -> Iterator[int]:
    """Start the nursery, which is not ready yet; yields its process id."""
    words = [sys.executable, "-m", "tests.chaos.nursery", os.environ["CHAOS_NURSERY"]]
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, cwd=ROOT)
    try:
        yield process.pid
    finally:
        for pid in offspring(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def await_nursery(log: Path) -> None:
    """Wait until the nursery has imported everything."""
    deadline = time.monotonic() + PATIENCE_S
    while "ready" not in (said := log.read_text()):
        assert "Error" not in said, said
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


def shim(scratch: Path) -> Path:
    """Return the program that stands in for Python; made on first use, because it names the real one."""
    path = scratch / "python"
    if not path.exists():
        path.write_text(f"#!{os.path.realpath(sys.executable)} -IS\n{SHIM.read_text()}")
        path.chmod(0o755)
    return path


class Cluster:
    """Head and worker node.

    Args:
        scratch: folder for Ray's sessions; its path is short, because sockets lie in it.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._port = unused_port()
        self._head = None
        self._worker = None

    @property
    def address(self) -> str:
        """Where the head listens; the same after a restart."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start head and worker node."""
        from ray._private.node import Node
        from ray._private.parameter import RayParams

        with self._python():
            params = RayParams(
                num_cpus=0,
                num_gpus=0,
                resources={"tune_driver": 2},
                gcs_server_port=self._port,
                no_monitor=True,
                **self._common(),
            )
            self._head = Node(params, head=True, shutdown_at_exit=False, spawn_reaper=True)
        self.add_worker_node()

    def add_worker_node(self) -> None:
        """Start a worker node, as an autoscaler would."""
        from ray._private.node import Node
        from ray._private.parameter import RayParams

        with self._python():
            params = RayParams(
                num_cpus=CPUS,
                num_gpus=0,
                redis_address=self.address,
                gcs_address=self.address,
                **self._common(),
            )
            self._worker = Node(params, head=False, shutdown_at_exit=False, spawn_reaper=True)

    @contextmanager
    def _python(self) -> Iterator[None]:
        """Let Ray take the shim for Python while a node is set up."""
        sys.executable, python = str(shim(self._scratch)), sys.executable
        try:
            yield
        finally:
            sys.executable = python

    def _common(self) -> dict:
        return {
            "node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "include_log_monitor": False,
            "object_store_memory": 80 * 2**20,
            "dashboard_agent_listen_port": unused_port(),
            "min_worker_port": 0,
            "max_worker_port": 0,
            "node_manager_port": 0,
            "temp_dir": str(self._scratch),
        }

    def free_cpus(self) -> float:
        """Return the CPUs that nothing on the cluster holds."""
        from ray._private.state import GlobalState
        from ray._raylet import GcsClientOptions

        state = GlobalState()
        state._initialize_global_state(
            GcsClientOptions.create(
                self.address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=True
            )
        )
        return state.available_resources().get("CPU", 0.0)

    def kill_worker_node(self) -> None:
        """SIGKILL the worker node's raylet; its workers end by themselves, as on a machine that goes away."""
        self._end(self._worker, "raylet")
        self._end(self._worker)
        self._worker = None

    def kill_head(self) -> None:
        """SIGKILL everything of the head node."""
        self._end(self._head, "gcs_server")
        self._end(self._head)
        self._head = None

    def stop(self) -> None:
        """End what is left."""
        for node in (self._worker, self._head):
            self._end(node)
        self._worker = self._head = None

    @staticmethod
    def _end(node, kind: str = "") -> None:
        """SIGKILL the processes of a node, or those of one kind, and wait for them."""
        if node is None:
            return
        processes = [
            p.process for k, found in node.all_processes.items() if k == kind or not kind for p in found
        ]
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
