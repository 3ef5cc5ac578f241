"""What trials used, by their own account, or by their rows where they left none."""

import contextlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.metrics.rows import Row

LONGEST_PAUSE_S = 1800.0
"""A trial that is silent for longer did not run: the longest silence of a running one is its evaluation."""


@dataclass(frozen=True)
class Used:
    """What one trial used, all its sessions together.

    Attributes:
        hours: by the clock.
        gpu_hours: hours times GPUs, or parts of one; 0 on a CPU.
    """

    hours: float
    gpu_hours: float


def used_by_trials(folder: Path, rows: Sequence[Row]) -> dict[str, Used]:
    """Return trial -> what it used.

    Taken from ``DONE.json`` or ``FAILED.json``. A trial without one (unfinished, or brought from elsewhere)
    is counted from its first row to its last, pauses of over half an hour left out, on one device.

    Args:
        folder: of the study.
        rows: its rows.
    """
    found = _from_rows(rows)
    for trial in sorted(folder.glob("trials/*")):
        for name in ("FAILED.json", "DONE.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                ended = json.loads((trial / name).read_text(encoding="utf-8"))
                found[trial.name] = Used(float(ended["seconds"]) / 3600, float(ended["gpu_hours"]))
    return found


def _from_rows(rows: Sequence[Row]) -> dict[str, Used]:
    times: dict[str, list[float]] = defaultdict(list)
    gpus = {row.trial: float(row.device != "cpu") for row in rows}
    for row in rows:
        times[row.trial].append(row.time)
    hours = {
        trial: sum(b - a for a, b in pairwise(sorted(stamps)) if b - a <= LONGEST_PAUSE_S) / 3600
        for trial, stamps in times.items()
    }
    return {trial: Used(spent, spent * gpus[trial]) for trial, spent in hours.items()}
