"""Where data, runs and mlflow.db are: in the project, or in the folder that an environment variable names.

A Ray job runs from a copy of the project that Ray removes some time after the job. So
``experiments/runtime_env.yaml``, which every job gets, names a folder outside that copy.
"""

import os
from pathlib import Path

HOME = "BIASWISE_HOME"
"""Environment variable: a folder on storage that every node of the cluster sees."""

DEFAULT_HOME = "BIASWISE_DEFAULT_HOME"
"""Environment variable: the folder if ``BIASWISE_HOME`` is not set.

``runtime_env.yaml`` sets this one, because a job's variables replace those of the cluster's machines, and the
machines' ``BIASWISE_HOME`` must win."""

COMMIT = "BIASWISE_COMMIT"
"""Environment variable: the commit of code that was shipped without its history."""

ROOT = Path(__file__).parents[2]
"""Project root, or the copy of it that Ray unpacked for a job."""

STATE = "state_dict"
"""Key of the weights in a checkpoint of mmcv and mmengine."""


def data_root() -> Path | None:
    """Return the folder that holds ``data``, ``runs`` and ``mlflow.db``; None leaves them in the project."""
    place = os.environ.get(HOME) or os.environ.get(DEFAULT_HOME)
    return Path(place).expanduser().absolute() if place else None


def default_runs_dir() -> str:
    """Return the folder of the studies if the user names none."""
    place = data_root()
    return "runs" if place is None else str(place / "runs")


def resolve_path(path: str) -> Path:
    """Return a path of the settings as an absolute one, wherever a worker runs.

    Files that come with the code (configs, the shipped checkpoint) are read from the project. Data and runs
    are below ``data_root()``.

    Args:
        path: absolute, or relative to the project.
    """
    place = data_root()
    return ROOT / path if place is None or (ROOT / path).is_file() else place / path


def split_name(path: Path) -> tuple[Path, str]:
    """Return the file and the key of ``epoch_20.pth#ema_state_dict``; without one, ``state_dict``."""
    name, mark, key = path.name.rpartition("#")
    return (path.with_name(name), key) if mark and not path.exists() else (path, STATE)
