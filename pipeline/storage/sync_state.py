"""Which files of a study folder are copied, in which order, and which have been.

The unit is a trial (``.../trials/<name>``); what lies around the trials is one more unit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pyarrow import fs

from pipeline.json_files import JsonError, read_json
from pipeline.storage.files import LOCKS, atomic_write, file_lock
from pipeline.storage.trial_status import FILE as STATUS

SYNC_STATE = ".sync_state.json"
"""File of a unit: path -> size and time of what was copied. Without it everything is copied again."""

LOCAL_ONLY = {"progress.json", "mlflow_sync.json"}
"""Files that have a meaning on their machine only. Files and folders that begin with a dot stay, too."""


def unit_of(name: str) -> str:
    """Return the trial that a file belongs to; empty if it lies around the trials."""
    parts = name.split("/")
    place = parts.index("trials") + 2 if "trials" in parts else len(parts)
    return "/".join(parts[:place]) if len(parts) > place else ""


def files_of(here: Path, unit: str) -> list[str]:
    """Return the files of a unit that belong to the copy, relative to it."""
    found = (path.relative_to(here) for path in here.rglob("*") if path.is_file())
    return [
        path.as_posix()
        for path in found
        if path.name not in LOCAL_ONLY
        and not any(part.startswith(".") for part in path.parts)
        and (unit or not unit_of(path.as_posix()))
    ]


def upload_order(name: str) -> tuple[int, str, bool]:
    """Rank files: rows first, then checkpoints, ``state.json`` the last of each, then the trial's status."""
    if name == STATUS:
        return 2, name, False
    if name.startswith("checkpoints/"):
        return 1, str(PurePosixPath(name).parent), name.endswith("state.json")
    return 0, name, False


def is_removable(name: str) -> bool:
    """Return whether the copy loses a file that the folder has lost: of an old checkpoint."""
    return name.startswith("checkpoints/")


def stamp(path: Path) -> list[int]:
    """Return size and time of a file."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def is_older(path: Path, info: fs.FileInfo) -> bool:
    """Return whether a local file is older than one in the bucket; the clocks may differ by a second."""
    return bool(path.stat().st_mtime + 1 < info.mtime.timestamp())


def read_sync_state(here: Path) -> dict[str, list[int]]:
    """Return file of a unit -> stamp of what was copied."""
    try:
        return read_json(here / SYNC_STATE, dict)
    except (OSError, JsonError):  # none yet, or broken: everything is copied again
        return {}


def write_sync_state(here: Path, ledger: dict[str, list[int]]) -> None:
    """Write the stamps of what was copied."""
    atomic_write(here / SYNC_STATE, ledger)


@contextmanager
def unit_lock(here: Path) -> Iterator[None]:
    """Keep processes of this machine from copying the same unit at once."""
    with file_lock(here / LOCKS / "copy"):
        yield
