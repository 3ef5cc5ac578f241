"""Sends the trials of a study to MLflow while they run, and once more when they have ended."""

import os
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from experiments.storage.usage import gpu_hours
from experiments.study.progress import StudyProgress
from pipeline.storage.remote import StorageError
from pipeline.storage.sync import StudySync
from pipeline.storage.trial_status import TrialState, read_status

LOWEST_PRIORITY = 19
"""Trials measure time, so sending waits for an idle core; Ray's workers have priority 15."""

EVERY_S = 30.0
"""Time between two looks at trials that run, seconds: as often as MLflow's pages look for new points."""


class BackgroundSync:
    """A thread of low priority that sends trials to MLflow; a context manager that waits for its end.

    It reads files and nothing else, so a server that is slow or dead costs the trials nothing.

    Args:
        study_folder: the study.
        progress: knows how far the study is, and shows warnings.
        study_sync: copy of the study at a URI; None if it has none.
        enabled: False sends nothing.
        every_s: seconds between two looks at trials that run.
    """

    def __init__(
        self,
        study_folder: Path,
        progress: StudyProgress,
        study_sync: StudySync | None,
        enabled: bool,
        every_s: float = EVERY_S,
    ) -> None:
        self._study_folder, self._progress = study_folder, progress
        self._study_sync, self._enabled, self._every_s = study_sync, enabled, every_s
        self._events: queue.SimpleQueue[tuple[str, bool] | None] = queue.SimpleQueue()  # None: the last one
        self._thread = threading.Thread(target=self._serve, name="tracking", daemon=True)
        self._last_warning = ""

    def __enter__(self) -> "BackgroundSync":
        """Start the thread."""
        if self._enabled:
            self._thread.start()
        return self

    def __exit__(self, *info: object) -> None:
        """Wait until every trial that ended has been sent, or could not be."""
        self._events.put(None)
        if self._enabled:
            self._thread.join()

    def trial_started(self, name: str) -> None:
        """Send a trial's rows from now on; returns at once."""
        self._events.put((name, False))

    def trial_ended(self, name: str) -> None:
        """Ask for the rest of a trial to be sent; returns at once."""
        self._events.put((name, True))

    def _serve(self) -> None:
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        running: set[str] = set()
        unsent: set[str] = set()
        look = time.monotonic() + self._every_s
        while True:
            try:
                left = max(look - time.monotonic(), 0) if running else None
                if (event := self._events.get(timeout=left)) is None:
                    return
            except queue.Empty:
                self._send(running | unsent, unsent)
                look = time.monotonic() + self._every_s
                continue
            name, ended = event
            if not ended:
                running.add(name)
                continue
            running.discard(name)
            unsent.add(name)
            self._send(unsent, unsent)

    def _send(self, trials: set[str], unsent: set[str]) -> None:
        """Send trials; empty ``unsent`` if that worked."""
        from pipeline.tracking.mlflow_sync import sync  # costs seconds: not before a trial has rows

        # The copy first: elsewhere, the study goes on from the copy and sends again what comes after it.
        warning = self._copy()
        if not warning:
            warning = sync(self._study_folder, trials=set(trials), progress=self._numbers()).warning
            if not warning:
                unsent.clear()
        if warning and warning != self._last_warning:
            self._progress.say(f"warning: {warning}")
        self._last_warning = warning

    def _numbers(self) -> Mapping[str, float]:
        """Return how far the study is, as its run in MLflow shows it."""
        states = [read_status(trial).state for trial in self._study_folder.glob("trials/*")]
        return {
            "trials_done": states.count(TrialState.COMPLETE),
            "trials_failed": states.count(TrialState.FAILED),
            "gpu_hours": gpu_hours(self._study_folder),
            **self._progress.numbers(),
        }

    def _copy(self) -> str:
        """Copy the study to its URI, if it has one; return why that failed, empty if it did not."""
        try:
            if self._study_sync is not None:
                self._study_sync.upload_study()
        except StorageError as error:
            return str(error)
        return ""
