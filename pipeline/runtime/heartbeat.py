"""A small file in a trial's folder in which rank 0 says how far the trial is.

Reports through Ray are barriers and slow; this is neither, and a watcher needs only the file.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

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
    """Writes the file; drops words that come too fast.

    Args:
        folder: the trial's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._stage = ""
        self._said_at = -math.inf

    def write(self, stage: str, done: int, total: int, seconds_left: float) -> None:
        """Say how far the trial is; ``seconds_left`` is NaN if unknown."""
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._said_at < EVERY_S:
            return
        self._stage, self._said_at = stage, now
        word = Progress(stage, done, total, None if math.isnan(seconds_left) else seconds_left)
        fresh = self._path.with_name(f".{FILE}.{os.getpid()}")
        fresh.write_text(json.dumps(asdict(word)), encoding="utf-8")
        fresh.replace(self._path)  # a reader sees the old word or the new one


def read_heartbeat(folder: Path) -> Progress | None:
    """Return the last word of a trial, None if it said nothing yet."""
    try:
        return Progress(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def clear_heartbeat(folder: Path) -> None:
    """Remove the word of an earlier run."""
    (folder / FILE).unlink(missing_ok=True)
