"""Nursery: one process that has imported everything once, and children of it that are Ray's workers.

A study of two tiny trials is four fifths imports: each of its processes loads torch and the model's
libraries anew. Here Ray is told that Python is ``python_shim.py``, which asks the nursery for a child; the
child becomes what it was asked to be. What it then does is the product's own code in a process of its own,
with a pid of its own that Ray knows, and it dies of SIGKILL like any other.

    python -m tests.chaos.nursery SOCKET     # waits for requests until its parent ends
"""

import array
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress

IMPORTS = (
    "matplotlib.pyplot",
    "pandas",
    "pyarrow.fs",
    "fsspec",
    "pydantic",
    "requests",
    "aiohttp",
    "grpc",
    "jsonschema",
    "google.protobuf",
    "scipy.stats",
    "statsmodels.api",
    "torch.profiler",
    "pipeline.training.trial",
    "pipeline.tracking.mlflow_sync",
    "pipeline.evaluation.scene_figure",
    "pipeline.evaluation.nuscenes_metric",
    "experiments.reporting.report",
    "experiments.cli.study.results",
)
"""Not Ray: it reads its environment once, when it is loaded. What is left of its imports takes a second."""


def serve(path: str) -> None:
    """Answer each request with a child; end when the parent does."""
    for name in IMPORTS:
        __import__(name)
    gc.freeze()
    if threading.active_count() > 1 or "ray" in sys.modules:
        raise RuntimeError(f"a fork would lose threads {threading.enumerate()}, or Ray is loaded already")
    parent = os.getppid()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(path)
    server.listen(64)
    print("ready", flush=True)
    shims: dict[socket.socket, int] = {}
    while os.getppid() == parent:
        _reap(shims)
        for link in select.select([server, *shims], [], [], 0.05)[0]:
            if link is server:
                _answer(server, shims)
            elif link in shims:  # a shim says nothing more, so it was killed: its child shares its fate
                os.killpg(shims.pop(link), signal.SIGKILL)
                link.close()
    for pid in shims.values():
        os.killpg(pid, signal.SIGKILL)


def _answer(server: socket.socket, shims: dict[socket.socket, int]) -> None:
    """Fork a child for the shim that knocks."""
    link, _ = server.accept()
    request, files = _receive(link)
    pid = os.fork()
    if pid == 0:
        for other in (server, link, *shims):
            other.close()
        _become(request, files)
    for file in files:
        os.close(file)
    link.sendall(f"{pid}\n".encode())
    shims[link] = pid


def _reap(shims: dict[socket.socket, int]) -> None:
    """Tell shims how their children ended."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            for link in [link for link, pid in shims.items() if pid == ended[0]]:
                del shims[link]
                with suppress(OSError):  # it was killed meanwhile
                    link.sendall(f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())
                link.close()


def _receive(link: socket.socket) -> tuple[dict, list[int]]:
    """Read a request: its length in a line, then JSON; three file descriptors come with it."""
    data, ancillary, _, _ = link.recvmsg(65536, socket.CMSG_LEN(3 * 4))
    files = array.array("i")
    for _, _, content in ancillary:
        files.frombytes(content)
    head, _, body = data.partition(b"\n")
    while len(body) < int(head):
        body += link.recv(65536)
    return json.loads(body), list(files)


def _become(request: dict, files: list[int]) -> None:
    """Turn this child into the Python that was asked for; never returns."""
    code = 1
    try:
        os.setsid()
        for place, file in enumerate(files):
            os.dup2(file, place)
            os.close(file)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        random.seed()
        words = request["words"]
        while words[0].startswith("-") and words[0] != "-m":  # options of the interpreter, such as -u
            words = words[1:]
        if words and words[0].endswith("setup_worker.py"):  # which would exec a Python anew
            words = _as_worker(words[1:])
        run, words = (runpy.run_module, words[1:]) if words[0] == "-m" else (runpy.run_path, words)
        sys.argv = words
        sys.stdout, sys.stderr = (os.fdopen(file, "w", buffering=1, closefd=False) for file in (1, 2))
        run(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - what Python does at its outermost level
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _as_worker(words: list[str]) -> list[str]:
    """Do what Ray's setup_worker.py does: set the runtime environment's variables, drop its own options."""
    kept = []
    for word in words:
        if word.startswith("--serialized-runtime-env-context="):
            os.environ.update(json.loads(word.partition("=")[2]).get("env_vars") or {})
        elif not word.startswith("--language="):
            kept.append(word)
    return kept


if __name__ == "__main__":
    serve(sys.argv[1])
