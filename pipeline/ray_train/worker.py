"""Runs the trials of a cohort inside a Ray Train worker; a single trial is a cohort of one.

Ray Train owns the process group and starts dead workers again. Checkpoints are files of a trial's folder,
written by rank 0; all ranks go on from the newest. Ray's own list holds those of one run in one folder, and
here a run has many trials. Rank 0 also marks the end of each trial at once, so that no restart runs it again.

Drivers and controllers import this file, too, only for its names. So it imports torch and the model's
libraries in functions, and those processes start seconds earlier.
"""

import gc
import importlib
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train

from pipeline.errors import TrialMemoryError, is_user_error
from pipeline.metrics.run_place import label_number
from pipeline.metrics.system_monitor import SystemMonitor, Worker
from pipeline.ray_train.cohort_run import CohortRun
from pipeline.runtime.heartbeat import Heartbeat
from pipeline.storage.remote import StorageError
from pipeline.storage.sync import RETRY_LIMIT_S
from pipeline.storage.trial_sessions import end_session
from pipeline.storage.trial_status import read_status

if TYPE_CHECKING:
    import torch

    from pipeline.training.cohort import ArmEnd


class RaySession:
    """``pipeline.runtime.session.Session`` of one trial in a Ray Train worker.

    Its slot is that of the run; on a GPU it is the number of the GPU instead.

    Args:
        folder: the trial's.
        run: the trials that run together.
    """

    def __init__(self, folder: Path, run: CohortRun) -> None:
        from ray.train.torch import get_device

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = get_device()
        self.folder = folder
        self.recipe = run.recipe
        self.cores = run.cores
        self.slot = gpu_number() if self.device.type == "cuda" else run.slot
        self._heartbeat = Heartbeat(folder)
        self._study_sync = run.study_sync
        self._unit = "" if run.study_sync is None else folder.relative_to(run.study_sync.folder).as_posix()

    def latest_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint on disk."""
        from pipeline.storage.checkpoint import newest_checkpoint

        return newest_checkpoint(self.folder / "checkpoints")

    def report_checkpoint(self, checkpoint: Path | None) -> None:
        """Copy a checkpoint that is complete on disk to where the study is kept."""
        if checkpoint is not None:
            self.keep()

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


def train_loop(config: dict[str, Any]) -> dict[str, Any] | None:
    """Run the trials of a cohort in this worker, and mark their ends.

    What is refused for a user's error returns the error if there is one worker: if it raised, Ray would
    restart the worker. With several workers it raises, so that Ray ends the ranks that wait for each other.

    Args:
        config: ``run``, a ``CohortRun``.

    Returns:
        None if every trial has ended; if they were refused together, ``error``, ``details`` and
        ``out_of_memory``: whether fewer trials may fit.
    """
    import_for_trials()
    run: CohortRun = config["run"]
    sessions = {folder: RaySession(folder, run) for folder in run.trials}
    first = next(iter(sessions.values()))
    try:
        _cap_memory(first.device, run.gpu_share)
        for session in sessions.values():
            session.begin()
        todo = run.unfinished()  # of a group that was started again, some may have ended
        if first.world_size > 1:
            import torch

            torch.distributed.barrier()  # no rank ends a trial before all have looked
        if todo:
            _run_together(run, {folder: sessions[folder] for folder in todo})
        for folder, session in sessions.items():
            _keep_end(folder, session, run)
    except (ValueError, RuntimeError) as error:
        if first.world_size > 1 or not is_user_error(error):
            raise
        no_memory = isinstance(error, TrialMemoryError)
        return {"error": str(error), "details": traceback.format_exc(), "out_of_memory": no_memory}
    return None


def import_for_trials() -> None:
    """Import what trials need, in a process that runs nothing else until its end.

    Python's garbage collector walks through all objects now and then, of which imports make hundreds of
    thousands. It pauses, and never looks at them again: a second of CPU in a trial of the demo. Processes
    that are forked later also share their memory for longer.
    """
    gc.disable()
    try:
        importlib.import_module("pipeline.training.cohort")
        gc.freeze()
    finally:
        gc.enable()


def _run_together(run: CohortRun, sessions: dict[Path, RaySession]) -> None:
    """Run the trials that have not ended, and mark each as soon as it has."""
    from pipeline.training.cohort import Arm, run_cohort

    first = next(iter(sessions.values()))
    with SystemMonitor(list(sessions), first.device, this_worker(first)) as monitor:

        def ended(end: "ArmEnd") -> None:
            folder = next(folder for folder in sessions if folder.name == end.trial)
            monitor.leave(folder)
            _mark(end, run, sessions[folder])

        arms = [Arm(run.trials[folder], session) for folder, session in sessions.items()]
        run_cohort(arms, run.early_stopping, ended)


def _mark(end: "ArmEnd", run: CohortRun, session: RaySession) -> None:
    """Mark a trial that has ended, on rank 0, while the others go on, and copy it to where the study is."""
    from pipeline.runtime.resource_errors import explain_resource_errors

    if session.rank == 0:
        with explain_resource_errors(run.trials[session.folder], session.folder):
            end_session(session.folder, end.error, end.details, run.folders)
        session.keep()


def _keep_end(folder: Path, session: RaySession, run: CohortRun) -> None:
    """Copy what is not copied yet of a trial that has ended; a trial whose copy fails has failed."""
    try:
        session.keep(RETRY_LIMIT_S)
    except StorageError as error:
        end_session(folder, read_status(folder).error or str(error), traceback.format_exc(), run.folders)


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
