"""Server: a real MLflow tracking server on 127.0.0.1 that can be killed and started again."""

import os
import signal
import sqlite3
import subprocess
import time
import urllib.request
from contextlib import closing, suppress
from pathlib import Path

from pipeline.tracking.mlflow_sync import sync
from tests.chaos.cluster import shim
from tests.machine import offspring, unused_port

PATIENCE_S = 300
"""It is up in 8 s, on a machine that does much else in two minutes."""

_PORTS: dict[Path, int] = {}


class Server:
    """The server of one run.

    Args:
        scratch: for its log; what stands in for Python is there.
        runs: folder of the run; its database is beside the study.
    """

    def __init__(self, scratch: Path, runs: Path) -> None:
        self._scratch, self._log, self._runs = scratch, scratch / "mlflow.log", runs
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def uri(runs: Path) -> str:
        """Address of the server of a run, the same after a restart."""
        if runs not in _PORTS:
            _PORTS[runs] = unused_port()
        return f"http://127.0.0.1:{_PORTS[runs]}"

    def start(self) -> None:
        """Start it; it answers after some seconds."""
        address = self.uri(self._runs)
        words = [str(shim(self._scratch)), "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
        words += ["--port", address.rpartition(":")[2]]
        given = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{self._runs / 'mlflow.db'}",
        }
        with self._log.open("w") as log:
            self._process = subprocess.Popen(words, env=given, cwd=self._runs, stdout=log, stderr=log)

    def await_answer(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri(self._runs)}/health", timeout=5):
                return
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL it and its workers."""
        if self._process is None:
            return
        for pid in (*offspring(self._process.pid), self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def oddities(self, study: Path) -> list[str]:
        """Start it if need be, send what is missing, twice; say what is there too often or not at all."""
        if self._process is None:
            self.start()
        self.await_answer()
        reports = [sync(study, self.uri(self._runs)) for _ in range(2)]
        odd = [f"rows were not sent: {r.warning or r.unsent}" for r in reports if r.warning or r.unsent]
        if reports[1].sent:
            odd.append(f"{reports[1].sent} rows were sent although nothing was missing")
        with closing(sqlite3.connect(self._runs / "mlflow.db")) as database:
            count = (  # of rows; the step of a sample of the machine or of progress is a second, rounded
                "SELECT COUNT(*), COUNT(DISTINCT run_uuid || '/' || key || '/' || step) FROM metrics "
                "WHERE key NOT LIKE 'system/%' AND key NOT LIKE 'progress/%'"
            )
            points, different = database.execute(count).fetchone()
        if points != different:
            odd.append(f"MLflow has {points - different} points twice")
        return odd
