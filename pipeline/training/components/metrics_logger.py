"""Writes what training measures to the trial's rows."""

import math
from collections.abc import Sequence
from dataclasses import replace

from pipeline.config.settings import TrialSettings
from pipeline.data.loading.broken_frames import BrokenFrames
from pipeline.metrics.recorder import Measure, RowRecorder
from pipeline.metrics.rows import Row
from pipeline.metrics.run_place import start_and_place
from pipeline.metrics.timing import StepTimes, device_name
from pipeline.metrics.versions import commit, versions
from pipeline.runtime.collectives import all_reduce_mean
from pipeline.runtime.session import Session


class MetricsLogger:
    """Rows of losses and norms while the trial trains, of times and skipped frames when training ends.

    Args:
        recorder: the rows file; None on ranks other than 0.
        session: losses are averaged over its ranks.
        settings: resolved ones; every ``train.log_every`` steps there are rows.
        steps: steps of the whole training.
        times: of the steps.
        broken: frames that this rank has skipped.
    """

    def __init__(
        self,
        recorder: RowRecorder | None,
        session: Session,
        settings: TrialSettings,
        steps: int,
        times: StepTimes,
        broken: BrokenFrames,
    ) -> None:
        self._recorder = recorder
        self._session = session
        self._settings = settings
        self._steps = steps
        self._times = times
        self._broken = broken

    def started(self, step: int) -> None:
        """Add when and where the training starts, or goes on: drift and place are told from the bias by it.

        Args:
            step: steps done before.
        """
        self.add(step, start_and_place(self._session.slot))

    def due(self, step: int) -> bool:
        """Whether ``after_step`` adds rows: every ``log_every`` steps and at the end."""
        return step % self._settings.train.log_every == 0 or step == self._steps

    def after_step(self, step: int, measures: Sequence[Measure], batches_per_step: int = 1) -> None:
        """Add the measures of a step that is due, averaged over the ranks, and the samples per second.

        Args:
            step: steps done.
            measures: of this rank.
            batches_per_step: batches that a rank runs in a step.
        """
        if not self.due(step):
            return
        means = all_reduce_mean([measure.value for measure in measures], self._session)
        averaged = [replace(m, value=mean) for m, mean in zip(measures, means, strict=True)]
        samples = self._settings.train.batch_size * batches_per_step * self._session.world_size
        self.add(step, [*averaged, *self._times.recent_rate(samples)])

    def finish(self, step: int, batches_per_step: int = 1) -> None:
        """Add the times of the steps, and how many frames all ranks have skipped, if any may be.

        Args:
            step: steps done; no further one follows.
            batches_per_step: batches that a rank runs in a step.
        """
        samples = self._settings.train.batch_size * batches_per_step * self._session.world_size
        self.add(step, self._times.measures(samples))
        if self._settings.data.max_broken_frames:
            (mean,) = all_reduce_mean([float(len(self._broken))], self._session)
            self.add(step, [Measure("broken_frames", "frames", mean * self._session.world_size)])

    def diverged(self, step: int) -> None:
        """Add a loss that is not a number: the verdict counts diverged trials by it."""
        self.add(step, [Measure("loss", "", math.nan)])

    def add(self, step: int, measures: Sequence[Measure]) -> None:
        """Append measures on rank 0; nothing happens on other ranks."""
        if self._recorder is not None:
            self._recorder.add(step, measures)


def open_recorder(settings: TrialSettings, session: Session, plan: str, data: str) -> RowRecorder:
    """Open the rows file of a trial; see ``common_row``."""
    return RowRecorder(session.folder / "rows.jsonl", common_row(settings, session, plan, data))


def common_row(settings: TrialSettings, session: Session, plan: str, data: str) -> Row:
    """Return what all rows of a trial have in common.

    Args:
        settings: of the trial.
        session: names the folder, and so the trial.
        plan: the resolved plan, spelled.
        data: ``fingerprint`` of the trial's data.
    """
    return Row(
        study=settings.study,
        trial=session.folder.name,
        plan=plan,
        metric="",
        unit="",
        value=0.0,
        seed=settings.seed,
        device=device_name(session.device),
        versions=f"{versions()};data={data}",
        commit=commit(),
        recipe_digest=session.recipe,
    )
