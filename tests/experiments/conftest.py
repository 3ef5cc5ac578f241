"""A real Ray head on this machine: listens on 127.0.0.1 alone, has a token, and is gone afterwards."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.recipes.mini import smoke
from experiments.recipes.recipe import SyntheticDataset
from experiments.study.preflight.datasets import make_datasets
from pipeline.ray_train.local_cluster import LOCAL_RAY
from pipeline.storage.temporary import temporary_folder
from tests.machine import offspring, unused_port

PATIENCE_S = 120
"""A head is up in 8 s, on a machine that does much else in 30."""


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        address: of its job server.
        gcs: host and port for ``RAY_ADDRESS``.
        environment: what a process needs to talk to it; also what the head itself was given.
    """

    address: str
    gcs: str
    environment: dict[str, str]

    def last_words(self) -> str:
        """Return the ends of its logs, for a test that fails."""
        logs = Path(self.environment["RAY_TMPDIR"]) / "ray" / "session_latest" / "logs"
        names = ("ray_process_exit.log", "gcs_server.out", "gcs_server.err", "monitor.log", "raylet.out")
        return "\n".join(
            f"{name}:\n{(logs / name).read_text()[-2000:]}" for name in names if (logs / name).is_file()
        )


@pytest.fixture(scope="session")
def smoke_world(made_once: Callable[..., Path]) -> SyntheticDataset:
    """The dataset of the smallest studies, made once."""

    def make(root: Path) -> None:
        make_datasets((replace(smoke().datasets[0], root=str(root)),), Console(quiet=True))

    return replace(smoke().datasets[0], root=str(made_once("smoke", make)))


@pytest.fixture
def start_head(tmp_path: Path) -> Iterator[Callable[..., Head]]:
    with ExitStack() as stack:

        def start(*options: str, gcs: int = 0, **environment: str) -> Head:
            gcs = gcs or unused_port()
            server, agent = unused_port(), unused_port()
            scratch = stack.enter_context(temporary_folder("head"))
            given = {
                **{
                    key: value for key, value in os.environ.items() if not key.startswith(("RAY_", LOCAL_RAY))
                },
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # odd name: bind to 127.0.0.1 alone
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_TMPDIR": str(scratch),
                "RAY_worker_niceness": "0",
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                **environment,
            }
            command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
            command += [f"--port={gcs}", f"--dashboard-port={server}"]
            command += [f"--dashboard-agent-listen-port={agent}", "--object-store-memory=150000000"]
            command += options
            log = tmp_path / "head.log"
            with log.open("w") as file:
                process = subprocess.Popen(
                    command, env=given, stdout=file, stderr=file, cwd=tmp_path, start_new_session=True
                )
            stack.callback(end, process)
            deadline = time.monotonic() + PATIENCE_S
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            return Head(f"http://127.0.0.1:{server}", f"127.0.0.1:{gcs}", given)

        yield start


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a head and all it started."""
    family = offspring(process.pid)
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
