"""What runs inside a Ray Train worker: one trial, its session backed by Ray Train.

Ray Train owns the process group and the list of checkpoints; rank 0 writes a checkpoint straight
to its place in the trial's folder, and every rank reports it, which is a barrier.

Drivers and controllers import this module as well, for names alone; so it imports torch and the model's
libraries on use, which spares each of those processes seconds.
"""

import logging
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train.backend import BackendConfig
from ray.train.v2._internal.execution import context as ray_train_context

from pipeline.errors import is_user_error
from pipeline.runtime.heartbeat import Heartbeat
from pipeline.storage.remote import StorageError
from pipeline.storage.sync import RETRY_LIMIT_S, StudySync

if TYPE_CHECKING:
    import torch


class SingleProcessBackend(BackendConfig):
    """For one worker: no process group, hence no store of torch's that listens on every interface."""

    backend = "none"


class RaySession:
    """``pipeline.runtime.session.Session`` of a Ray Train worker.

    Args:
        folder: the trial's folder, on storage that every worker sees.
        recipe: digest of the study's recipe.
        study_sync: of the study, if it is kept at a URI, too.
    """

    def __init__(self, folder: Path, recipe: str, study_sync: StudySync | None = None) -> None:
        from ray.train.torch import get_device

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = get_device()
        self.folder = folder
        self.recipe = recipe
        self._heartbeat = Heartbeat(folder)
        self._study_sync = study_sync
        self._unit = "" if study_sync is None else folder.relative_to(study_sync.folder).as_posix()

    def latest_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint on disk.

        Not Ray's own list: a checkpoint whose report a crash cut off is complete all the same.
        """
        from pipeline.storage.checkpoint import newest_checkpoint

        return newest_checkpoint(self.folder / "checkpoints")

    def report_checkpoint(self, checkpoint: Path | None) -> None:
        """Name the checkpoint that is on disk already to Ray Train."""
        if checkpoint is not None:
            self.keep()
        made = None if checkpoint is None else ray.train.Checkpoint.from_directory(str(checkpoint))
        mode = ray.train.CheckpointUploadMode.NO_UPLOAD
        ray.train.report({}, checkpoint=made, checkpoint_upload_mode=mode)

    def seconds_left(self) -> float | None:
        """Return how long the machines of the trial last, if the cluster drains one of them.

        Read where Ray Train's watcher puts it in this process (private to Ray; pinned, and a test fails if it
        moves): the public ``get_preemption_info`` asks an actor on another machine in every step.
        """
        notice = ray_train_context.get_train_context().preemption_context.preemption_info
        if notice is None:
            return None
        return float("inf") if notice.deadline_ms is None else notice.deadline_ms / 1e3 - time.time()

    def begin(self) -> None:
        """Go on where the study's copy is, if it has one: rank 0 first, then the ranks that follow it."""
        if self._study_sync is None:
            return
        if self.rank == 0:
            self._study_sync.download(self._unit)
            self._study_sync.upload(self._unit)  # a checkpoint that was cut off before it was copied
        if self.world_size > 1:
            import torch

            torch.distributed.barrier()
        if self.rank > 0:
            self._study_sync.download(self._unit, exact=True)

    def keep(self, patience_s: float = 0.0) -> None:
        """Copy what is new to where the study is kept.

        Without patience a store that does not answer is no reason to stop: the next copy has it all.
        """
        if self._study_sync is None or self.rank > 0:
            return
        try:
            self._study_sync.upload(self._unit, patience_s)
        except StorageError:
            if patience_s or not self._study_sync.holds():
                raise

    def progress(self, stage: str, done: int, total: int, seconds_left: float) -> None:
        """Leave word for whoever shows progress."""
        self._heartbeat.write(stage, done, total, seconds_left)


def train_loop(config: dict[str, Any]) -> dict[str, str] | None:
    """Run one trial in this worker.

    A refusal of a trial with one worker is returned, not raised: Ray would restart the worker only to
    be refused again. With several workers it is raised, so that Ray ends those that wait for each other.

    Args:
        config: ``settings`` (``TrialSettings.to_dict``), ``folder``, ``recipe``, ``early_stopping``
            (``EarlyStopping.to_dict``), ``gpu_share``, the part of a GPU's memory that is this worker's, and
            ``study_sync``, of the study, or None.

    Returns:
        None if the trial is done; ``error`` and ``details`` if it was refused.
    """
    from pipeline.config.early_stopping import EarlyStopping
    from pipeline.config.settings import TrialSettings
    from pipeline.training.trial import run_trial

    # Ray Train logs two lines per rank and report; this logger is named by its file's path.
    logging.getLogger(ray_train_context.__file__).setLevel(logging.WARNING)
    session = RaySession(Path(config["folder"]), config["recipe"], config.get("study_sync"))
    try:
        _cap_memory(session.device, config["gpu_share"])
        session.begin()
        run_trial(
            TrialSettings.from_dict(config["settings"]),
            session,
            EarlyStopping.from_dict(config["early_stopping"]),
        )
        session.keep(RETRY_LIMIT_S)
    except (ValueError, RuntimeError) as error:
        if session.world_size > 1 or not is_user_error(error):
            raise
        return {"error": str(error), "details": traceback.format_exc()}
    return None


def _cap_memory(device: "torch.device", share: float) -> None:
    """Let a worker that shares a GPU run out of memory before its neighbours do."""
    import torch

    if device.type == "cuda" and share < 1:
        torch.cuda.set_per_process_memory_fraction(share, device)
