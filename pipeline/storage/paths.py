"""Where data, runs and mlflow.db live when the code is a copy that Ray throws away after the job."""

import os
from pathlib import Path

HOME = "BIASWISE_HOME"
"""Environment variable: a folder on storage that every node of the cluster sees."""

COMMIT = "BIASWISE_COMMIT"
"""Environment variable: the commit of code that was shipped without its history."""

ROOT = Path(__file__).parents[2]
"""Project root, or the copy of it that Ray unpacked for a job."""


def data_root(root: Path = ROOT) -> Path | None:
    """Return the folder that holds ``data``, ``runs`` and ``mlflow.db``; None leaves them in the project.

    It is what ``BIASWISE_HOME`` says. In a Ray job that is told nothing it is ``~/biaswise``, because Ray
    removes the job's copy of the project, and what was written into it, some time after the job.

    Args:
        root: where the code lies.
    """
    if os.environ.get(HOME):
        return Path(os.environ[HOME]).expanduser().absolute()
    if "runtime_resources" in root.parts:  # Ray's cache of working directories
        return Path.home() / "biaswise"
    return None


def default_runs_dir() -> str:
    """Return the folder of the studies if none is named."""
    place = data_root()
    return "runs" if place is None else str(place / "runs")


def resolve_path(path: str, root: Path = ROOT) -> Path:
    """Return a path of the settings as an absolute one, wherever a worker runs.

    Files that come with the code (configs, the shipped checkpoint) are found there; data and runs at home.

    Args:
        path: absolute, or relative to the project.
        root: where the code lies.
    """
    place = data_root(root)
    return root / path if place is None or (root / path).is_file() else place / path
