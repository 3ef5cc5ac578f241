"""Saves a trial while it trains, and restores it when it is started again."""

from pipeline.config.settings import TrialSettings
from pipeline.runtime.session import Session
from pipeline.storage.checkpoint import Trained, load_checkpoint, save_checkpoint
from pipeline.training.components.preemption import PreemptionWatch


class Checkpointer:
    """Checkpoints every ``train.checkpoint_every`` steps, at the end, and before a machine is taken away.

    Args:
        session: names the newest checkpoint, and is told of every new one.
        settings: resolved ones; a checkpoint of other settings is refused.
        steps: steps of the whole training.
        trained: the bare detector, its optimiser, and the average of its weights.
    """

    def __init__(self, session: Session, settings: TrialSettings, steps: int, trained: Trained) -> None:
        self._session = session
        self._digest = settings.digest
        self._every, self._kept = settings.train.checkpoint_every, settings.train.checkpoints_kept
        self._steps = steps
        self._trained = trained
        self._preemption = PreemptionWatch(session, settings.train.log_every)

    def restore(self) -> int:
        """Load the newest checkpoint, if there is one, and return how many steps it has.

        Raises:
            pipeline.storage.checkpoint.CheckpointError: it was written under other settings, or is damaged.
        """
        newest = self._session.latest_checkpoint()
        return 0 if newest is None else load_checkpoint(newest, self._digest, self._trained)

    def after_step(self, step: int) -> None:
        """Save if it is time; all ranks call it after every step.

        Args:
            step: steps done.
        """
        machine_leaves = self._preemption.should_checkpoint(step)
        if machine_leaves or self.due(step):
            self._save(step)

    def due(self, step: int) -> bool:
        """Whether ``after_step`` saves in any case: every ``checkpoint_every`` steps and at the end."""
        return step % self._every == 0 or step == self._steps

    def _save(self, step: int) -> None:
        path = None
        if self._session.rank == 0:
            folder = self._session.folder / "checkpoints"
            path = save_checkpoint(folder, step, self._digest, self._trained, self._kept)
        self._session.report_checkpoint(path)
