"""Versions of the code in processes of their own: each answers a request per line, so they can take turns."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class Worker:
    """A script that runs against one version of the code; it ends with ``answer_requests``.

    Args:
        tree: checkout of the version.
        script: what runs; its imports of the project are those of ``tree``.
        arguments: of the script.
        threads: of OpenMP.
    """

    def __init__(self, tree: Path, script: Path, arguments: list[str], threads: int) -> None:
        path = os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        words = [sys.executable, str(script.resolve()), *arguments]
        self._process = subprocess.Popen(words, cwd=tree, env=environment, **pipes)

    def send(self, request: str) -> None:
        """Send a request."""
        assert self._process.stdin is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return the next answer; the first one says that the worker is ready."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit("a worker ended before it answered")

    def end(self) -> None:
        """Close the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def answer_requests(version: Any) -> None:
    """Answer requests such as ``steps 20``, a method and its numbers, with a line of JSON each."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        name, *numbers = line.split()
        print(json.dumps(getattr(version, name)(*map(int, numbers))), flush=True)
