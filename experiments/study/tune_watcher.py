"""What the study driver hears from Ray Tune while cohorts run, for the progress display and for tracking."""

import time
from collections.abc import Sequence
from typing import Any

from ray import tune

from experiments.storage.study_folder import StudyFolder
from experiments.study.background_sync import BackgroundSync
from experiments.study.progress import StudyProgress, spell_trials
from pipeline.ray_train.reservations import ReservationWatch
from pipeline.runtime.event_log import describe_restarts

SAID = "said"
"""Key of what a driver reports to be shown, a sentence."""

LOOK_S = 1.0
"""Time between two looks for trials that have ended while others of their cohort go on."""


class StudyWatcher(tune.Callback):
    """Passes the events of Tune, and the ends of trials, to the progress display and to tracking.

    A trial of Tune is a cohort. Its trials end before it does, so their statuses are read now and then.
    """

    def __init__(self, folder: StudyFolder, progress: StudyProgress, background_sync: BackgroundSync) -> None:
        self._folder, self._progress, self._background_sync = folder, progress, background_sync
        self._running: list[str] = []
        self._looked_at = 0.0
        self._reservations = ReservationWatch()

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing to pickle: Tune saves its callbacks for a restore that files make needless."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show trials that start, and send their rows from now on."""
        names = [name for name in trial.config["trials"] if not self._folder.state(name).has_ended]
        if names:
            self._progress.started({name: self._folder.trial(name) for name in names})
            self._running += [name for name in names if name not in self._running]
            for name in names:
                self._background_sync.trial_started(name)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Show trials that have ended while others of their cohort go on, and workers that wait for room."""
        if time.monotonic() - self._looked_at > LOOK_S:
            self._tell_ends(self._running)
            self._looked_at = time.monotonic()
            if sentence := self._reservations.look():
                self._progress.say(sentence)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Show what a driver has to say."""
        if sentence := result.get(SAID):
            self._progress.say(sentence)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show how the trials of a cohort ended, and which have not."""
        self._tell_ends(trial.config["trials"])
        left = str((trial.last_result or {}).get("left", ""))
        for name in [name for name in trial.config["trials"] if name in self._running]:
            self._end(name, left)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show that a driver died and is started again."""
        who = spell_trials(trial.config["trials"])
        self._progress.say(f"the process that drove {who} died; it is started again")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Mark the trials whose driver died more often than is forgiven."""
        self._tell_ends(trial.config["trials"])
        for name in trial.config["trials"]:
            if self._folder.state(name).has_ended:
                continue
            reason = "the process that drove the trial died"
            try:
                self._folder.finish(name, reason, str(trial.get_pickled_error()))
            except OSError as error:  # a trial without a mark is unfinished, and the same command goes on
                reason = f"{reason}, and that could not be written down ({error})"
            self._end(name, reason)

    def _tell_ends(self, names: Sequence[str]) -> None:
        """Show those of the running trials that have ended, and send their rows."""
        for name in [name for name in names if name in self._running]:
            if self._folder.state(name).has_ended:
                self._end(name, self._folder.failure(name))

    def _end(self, name: str, reason: str) -> None:
        """Show that a trial has ended, or why not; send its rows."""
        if name in self._running:  # not if its driver died before it started
            self._running.remove(name)
        if again := describe_restarts(self._folder.trial(name)):
            self._progress.say(f"{name} was {again}")
        self._progress.ended(name, reason)
        self._background_sync.trial_ended(name)
