"""What a trial needs from the process that runs it: rank, device, folder, checkpoints, progress.

``LocalSession`` runs a trial in this process, without Ray; ``pipeline.ray_train.worker`` adapts a Ray Train
worker to the same protocol.
"""

import sys
from pathlib import Path
from typing import Protocol

import torch

from pipeline.storage.checkpoint import newest_checkpoint


class Session(Protocol):
    """The surroundings of one trial.

    Attributes:
        rank: index of this worker among the trial's workers.
        world_size: number of workers; above 1 the process group is already initialised.
        device: of the model.
        folder: the trial's folder, the same for all ranks; its name is the trial's name.
        recipe: digest of the study's recipe, copied into every row; empty if there is no study.
        slot: which of the places that run trials at once runs this one: the number of the GPU, or on a CPU
            the index of the place, from 0.
        cores: of its machine that the worker may use; trials that run at once share them.
    """

    rank: int
    world_size: int
    device: torch.device
    folder: Path
    recipe: str
    slot: int
    cores: int

    def latest_checkpoint(self) -> Path | None:
        """Return the newest complete state checkpoint (a folder) to resume from, if there is one."""
        ...

    def report_checkpoint(self, checkpoint: Path | None) -> None:
        """Hand over a state checkpoint that is complete on disk.

        Every rank calls it for every checkpoint, never inside a timed region.

        Args:
            checkpoint: its folder; None on ranks other than 0.
        """
        ...

    def seconds_left(self) -> float | None:
        """Return the seconds until a machine of the trial is taken away; None without a notice of that.

        It may be a barrier, so every rank calls it after the same steps. All ranks hear of the same notice.
        """
        ...

    def progress(self, stage: str, done: int, total: int, seconds_left: float) -> None:
        """Report how far the trial is; only rank 0 calls it.

        Args:
            stage: ``train``, ``evaluate`` or ``early stopping``.
            done: of the stage: steps or frames.
            total: of the stage.
            seconds_left: of the stage; NaN if unknown.
        """
        ...


class LocalSession:
    """A session of one worker in this process, with checkpoints in ``folder/checkpoints``."""

    rank = 0
    world_size = 1
    slot = 0
    cores = 1

    def __init__(self, folder: Path, device: str | torch.device = "cpu", quiet: bool = True) -> None:
        self.folder = folder
        self.device = torch.device(device)
        self.recipe = ""
        self._quiet = quiet

    def latest_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint of the folder."""
        return newest_checkpoint(self.folder / "checkpoints")

    def report_checkpoint(self, checkpoint: Path | None) -> None:
        """Do nothing: the checkpoint is in the trial's folder already."""

    def seconds_left(self) -> float | None:
        """Return None: this machine gets no notice."""
        return None

    def progress(self, stage: str, done: int, total: int, seconds_left: float) -> None:
        """Rewrite one line on the terminal's error stream, unless the session is quiet."""
        if not self._quiet:
            end = "\n" if done == total else ""
            sys.stderr.write(f"\r{stage} {done}/{total}, {seconds_left:.0f} s left {end}")
            sys.stderr.flush()
