"""Writes to the file ``TIMELINE_LOG`` when a Python process starts, and when it first does what takes long.

Python runs a module of this name when it starts, if the folder is in ``PYTHONPATH``. A line has Unix time,
process number, CPU seconds of the process so far, and what began: the process, the import of a module, the
opening of one of a trial's files. What the process was doing before ends there.
"""

import os
import sys
import time
from typing import Any

LOG = os.environ.get("TIMELINE_LOG", "")
MODULES = {
    *("ray", "ray.train", "ray.tune", "ray.data", "torch", "torch._dynamo", "triton", "sympy", "mlflow"),
    *(
        "mmengine",
        "mmdet",
        "mmdet3d",
        "nuscenes",
        "sklearn",
        "matplotlib",
        "scipy",
        "pandas",
        "cv2",
        "spconv",
    ),
    *("experiments.study.tune_runner", "pipeline.ray_train.launch", "pipeline.ray_train.worker"),
    *("pipeline.training.cohort", "pipeline.training.cohort.lockstep", "pipeline.detector.build"),
}
FILES = ("events.jsonl", "progress.json", "rows.jsonl", ".safetensors", "scene.png", ".npz")
"""Ends of names of files of a trial."""

_seen: set[str] = set()


def write(what: str) -> None:
    """Append a line."""
    used = os.times()
    line = f"{time.time():.2f} {os.getpid()} {used.user + used.system:.2f} {what}\n"
    file = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, line.encode())
    os.close(file)


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Write down the first import of a module, and the first opening of a file."""
    if event == "import" and arguments[0] in MODULES:
        what = f"import {arguments[0]}"
    elif event == "open" and str(arguments[0]).endswith(FILES):
        what = "open " + os.sep.join(str(arguments[0]).split(os.sep)[-2:])
    else:
        return
    if what not in _seen:
        _seen.add(what)
        write(what)


if LOG:
    write("start " + " ".join(sys.orig_argv)[:120])
    sys.addaudithook(watch)
