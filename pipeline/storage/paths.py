"""Where data, runs and mlflow.db are: in the current folder, or where an environment variable says.

A Ray job runs from a copy of its files that Ray removes some time after the job. So
``experiments/runtime_env.yaml``, which every job gets, names a folder outside that copy.
"""

import os
import shlex
from pathlib import Path

HOME = "BIASWISE_HOME"
"""Environment variable: a folder on storage that every node of the cluster sees."""

DEFAULT_HOME = "BIASWISE_DEFAULT_HOME"
"""Environment variable: the folder if ``BIASWISE_HOME`` is not set.

``runtime_env.yaml`` sets this one, because a job's variables replace those of the cluster's machines, and the
machines' ``BIASWISE_HOME`` must win. A study tells its workers with it which folder is meant."""

JOB_HOME = "~/biaswise"
"""What ``runtime_env.yaml`` sets ``BIASWISE_DEFAULT_HOME`` to."""

COMMIT = "BIASWISE_COMMIT"
"""Environment variable: the commit of code that was shipped without its history."""

ROOT = Path(__file__).parents[2]
"""Folder of the three packages: a checkout, ``site-packages``, or the copy that Ray unpacked for a job."""

RUNTIME_ENV = ROOT / "experiments/runtime_env.yaml"
"""What every Ray job of this project gets."""

STATE = "state_dict"
"""Key of the weights in a checkpoint of mmcv and mmengine."""


def home() -> Path:
    """Return the folder that holds ``data``, ``runs`` and ``mlflow.db``."""
    place = os.environ.get(HOME) or os.environ.get(DEFAULT_HOME)
    return Path(place).expanduser().absolute() if place else Path.cwd()


def default_runs_dir() -> str:
    """Return the folder of the studies if the user names none."""
    return "runs" if home() == Path.cwd() else str(home() / "runs")


def with_home(command: str) -> str:
    """Return a command with the ``home()`` of this process, which may be that of a Ray job, in front."""
    return command if home() == Path.cwd() else f"{HOME}={shlex.quote(str(home()))} {command}"


def resolve_path(path: str | Path) -> Path:
    """Return a path of the settings as an absolute one, wherever a worker runs.

    A relative path is one of three things, in this order: a file that comes with the code (configs, the
    shipped checkpoint); what is below ``home()``; a file of the current folder, as the one that was uploaded
    with a job.

    Args:
        path: absolute, or relative.

    Returns:
        The first that exists, else the path below ``home()``.
    """
    if (ROOT / path).is_file():
        return ROOT / path
    there = home() / path
    return Path.cwd() / path if not there.exists() and (Path.cwd() / path).is_file() else there


def split_name(path: Path) -> tuple[Path, str]:
    """Return the file and the key of ``epoch_20.pth#ema_state_dict``; without one, ``state_dict``."""
    name, mark, key = path.name.rpartition("#")
    return (path.with_name(name), key) if mark and not path.exists() else (path, STATE)


def not_a_file(path: Path) -> str:
    """Return a clause that says what is wrong with a path where a file is expected; empty if one is there."""
    if path.is_file():
        return ""
    return f"{path} is a folder, expected a file" if path.is_dir() else f"there is no {path}"
