"""What a trial needs from whoever started it - rank, device, folder, checkpoints, progress.

``LocalSession`` runs a trial in this process, without Ray; ``pipeline.ray_train.worker`` adapts a Ray Train
worker to the same protocol.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from pipeline.storage.checkpoint import newest_checkpoint


class Session(Protocol):
    """The surroundings of one trial.

    Attributes:
        rank: index of this worker among the trial's workers.
        world_size: number of workers; above 1 the process group is already initialised.
        device: where the model lives.
        folder: the trial's folder, the same for all ranks; its name is the trial's name.
        recipe: digest of the study's recipe, copied into every row; empty if there is no study.
    """

    rank: int
    world_size: int
    device: torch.device
    folder: Path
    recipe: str

    def latest_checkpoint(self) -> Path | None:
        """Return the newest complete state checkpoint (a folder) to resume from, if there is one."""
        ...

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """Hand over metrics and perhaps a state checkpoint.

        Every rank calls it the same number of times, never inside a timed region; ``checkpoint``
        is None on all ranks but 0.
        """
        ...

    def seconds_left(self) -> float | None:
        """Return how long the machines of the trial last, if notice was given for one of them; else None.

        Asked after every step: it costs nothing, and ranks may hear of a notice at different moments.
        """
        ...

    def progress(self, stage: str, done: int, total: int, seconds_left: float) -> None:
        """Say how far the trial is; rank 0 alone calls it. ``seconds_left`` is NaN if unknown."""
        ...


class LocalSession:
    """A session of one worker in this process, with checkpoints in ``folder/checkpoints``."""

    rank = 0
    world_size = 1

    def __init__(self, folder: Path, device: str | torch.device = "cpu", quiet: bool = True) -> None:
        self.folder = folder
        self.device = torch.device(device)
        self.recipe = ""
        self.reports: list[dict[str, float]] = []
        self._quiet = quiet

    def latest_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint of the folder."""
        return newest_checkpoint(self.folder / "checkpoints")

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """Keep the metrics; checkpoints are where they belong already."""
        self.reports.append(dict(metrics))

    def seconds_left(self) -> float | None:
        """Return None: nobody gives this machine notice."""
        return None

    def progress(self, stage: str, done: int, total: int, seconds_left: float) -> None:
        """Rewrite one line on the terminal's error stream, unless the session is quiet."""
        if not self._quiet:
            end = "\n" if done == total else ""
            sys.stderr.write(f"\r{stage} {done}/{total}, {seconds_left:.0f} s left {end}")
            sys.stderr.flush()
