"""``progress.json`` of a trial: how far it is, written by rank 0.

Reports through Ray are barriers and slow. This file is neither, and a reader needs nothing else.
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.json_files import JsonError, check_fields, read_json
from pipeline.storage.files import atomic_write

FILE = "progress.json"

EVERY_S = 0.5
"""Shortest time between two writes within a stage: as often as a person looks, too rare to slow a step."""


@dataclass(frozen=True)
class Progress:
    """How far a trial is.

    Attributes:
        stage: ``train``, ``evaluate``, ...
        done, total: of the stage, in its own units.
        seconds_left: of the stage; None if unknown.
    """

    stage: str
    done: int
    total: int
    seconds_left: float | None


class Heartbeat:
    """Writes the file; leaves out what comes too soon after the last write.

    Args:
        folder: the trial's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._stage = ""
        self._written_at = -math.inf

    def write(self, stage: str, done: int, total: int, seconds_left: float) -> None:
        """Write how far the trial is; ``seconds_left`` is NaN if unknown."""
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._written_at < EVERY_S:
            return
        self._stage, self._written_at = stage, now
        progress = Progress(stage, done, total, None if math.isnan(seconds_left) else seconds_left)
        atomic_write(self._path, asdict(progress))


def read_heartbeat(folder: Path) -> Progress | None:
    """Return how far a trial said it is; None if it has not said anything yet."""
    try:
        plain = read_json(folder / FILE, dict)
        check_fields(Progress, plain)
        return Progress(**plain)
    except (FileNotFoundError, JsonError):  # for the eye only: a spoilt one says nothing
        return None


def clear_heartbeat(folder: Path) -> None:
    """Remove the file of an earlier run."""
    (folder / FILE).unlink(missing_ok=True)
