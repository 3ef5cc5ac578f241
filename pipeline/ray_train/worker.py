"""Runs one trial inside a Ray Train worker.

Ray Train owns the process group and the list of checkpoints. Rank 0 writes a checkpoint to its place in the
trial's folder, and every rank reports it; the report is a barrier.

Drivers and controllers import this file, too, only for its names. So it imports torch and the model's
libraries in functions, and those processes start seconds earlier.
"""

import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train.backend import BackendConfig

from pipeline.errors import is_user_error
from pipeline.metrics.run_place import label_number
from pipeline.metrics.system_monitor import SystemMonitor, Worker
from pipeline.ray_train.ray_internals import silence_report_log
from pipeline.runtime.heartbeat import Heartbeat
from pipeline.storage.remote import StorageError
from pipeline.storage.sync import RETRY_LIMIT_S, StudySync

if TYPE_CHECKING:
    import torch


class SingleProcessBackend(BackendConfig):
    """For one worker: no process group, so no store of torch that listens on every network interface."""

    backend = "none"


class RaySession:
    """``pipeline.runtime.session.Session`` of a Ray Train worker.

    Args:
        folder: the trial's folder, on storage that every worker sees.
        recipe: digest of the study's recipe.
        study_sync: of the study, if it is also kept at a URI.
        slot: which of the concurrent places of the study runs the trial; a worker on a GPU takes the number
            of its GPU instead.
    """

    def __init__(self, folder: Path, recipe: str, study_sync: StudySync | None = None, slot: int = 0) -> None:
        from ray.train.torch import get_device

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = get_device()
        self.folder = folder
        self.recipe = recipe
        self.slot = gpu_number() if self.device.type == "cuda" else slot
        self._heartbeat = Heartbeat(folder)
        self._study_sync = study_sync
        self._unit = "" if study_sync is None else folder.relative_to(study_sync.folder).as_posix()

    def latest_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint on disk.

        Ray's own list may lack it: a crash between writing and reporting leaves a complete checkpoint.
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
        """Return the seconds until the cluster removes a machine of the trial; None if it drains none.

        A barrier of all ranks: Ray Train gives all of them what rank 0 has heard.
        """
        notice = ray.train.get_preemption_info()
        if notice is None:
            return None
        return float("inf") if notice.deadline_ms is None else notice.deadline_ms / 1e3 - time.time()

    def begin(self) -> None:
        """Bring the trial's folder to the state of the study's copy, if it has one: rank 0 first."""
        if self._study_sync is None:
            return
        if self.rank == 0:
            self._study_sync.download(self._unit)
            self._study_sync.upload(self._unit)  # a checkpoint that was written and not copied
        if self.world_size > 1:
            import torch

            torch.distributed.barrier()
        if self.rank > 0:
            self._study_sync.download(self._unit, exact=True)

    def keep(self, patience_s: float = 0.0) -> None:
        """Copy what is new to where the study is kept.

        Args:
            patience_s: seconds to try again if the store does not answer. With 0 such a failure is ignored as
                long as the study's lease holds: the next copy includes what is new now.

        Raises:
            StorageError: the store does not answer.
        """
        if self._study_sync is None or self.rank > 0:
            return
        try:
            self._study_sync.upload(self._unit, patience_s)
        except StorageError:
            if patience_s or not self._study_sync.holds():
                raise

    def progress(self, stage: str, done: int, total: int, seconds_left: float) -> None:
        """Write the trial's heartbeat."""
        self._heartbeat.write(stage, done, total, seconds_left)


def train_loop(config: dict[str, Any]) -> dict[str, str] | None:
    """Run one trial in this worker.

    A trial that is refused for a user's error returns the error if it has one worker: if it raised, Ray would
    restart the worker. With several workers it raises, so that Ray ends the ranks that wait for each other.

    Args:
        config: ``settings`` (``TrialSettings.to_dict``), ``folder``, ``recipe``, ``early_stopping``
            (``EarlyStopping.to_dict``), ``gpu_share`` (the part of a GPU's memory that is this worker's),
            ``study_sync`` (of the study, or None) and ``slot`` (as in ``RaySession``).

    Returns:
        None if the trial is done; ``error`` and ``details`` if it was refused.
    """
    from pipeline.config.early_stopping import EarlyStopping
    from pipeline.config.settings import TrialSettings
    from pipeline.training.trial import run_trial

    silence_report_log()
    session = RaySession(Path(config["folder"]), config["recipe"], config.get("study_sync"), config["slot"])
    try:
        _cap_memory(session.device, config["gpu_share"])
        session.begin()
        with SystemMonitor([session.folder], session.device, this_worker(session)):
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


def this_worker(session: RaySession) -> Worker:
    """Return which worker this is, for what it tells of its machine."""
    context = ray.train.get_context()
    return Worker(session.rank, context.get_node_rank(), context.get_local_rank() == 0, session.slot)


def gpu_number() -> int:
    """Return the number of this worker's GPU on its machine, as Ray has it.

    A GPU that Ray names by a text (a part of one, say) gets a number that stands for the text.
    """
    (name, *_) = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    return int(name) if name.isdecimal() else label_number(name)


def _cap_memory(device: "torch.device", share: float) -> None:
    """Limit a worker that shares a GPU to its part of the memory."""
    import torch

    if device.type == "cuda" and share < 1:
        torch.cuda.set_per_process_memory_fraction(share, device)
