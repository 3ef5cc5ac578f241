"""Sends each trial that has ended to MLflow while the other trials run."""

import os
import queue
import threading
from pathlib import Path

from experiments.study.progress import StudyProgress
from pipeline.storage.remote import StorageError
from pipeline.storage.sync import StudySync

LOWEST_PRIORITY = 19
"""Trials measure time, so sending waits for an idle core; Ray's workers have priority 15."""


class BackgroundSync:
    """A thread of low priority that sends trials to MLflow; a context manager that waits for its end.

    Args:
        study_folder: the study.
        progress: where warnings are shown.
        study_sync: copy of the study at a URI; None if it has none.
        enabled: False sends nothing.
    """

    def __init__(
        self, study_folder: Path, progress: StudyProgress, study_sync: StudySync | None, enabled: bool
    ) -> None:
        self._study_folder, self._progress = study_folder, progress
        self._study_sync, self._enabled = study_sync, enabled
        self._ended: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # names; None: no more will come
        self._thread = threading.Thread(target=self._serve, name="tracking", daemon=True)
        self._last_warning = ""

    def __enter__(self) -> "BackgroundSync":
        """Start the thread."""
        if self._enabled:
            self._thread.start()
        return self

    def __exit__(self, *info: object) -> None:
        """Wait until every trial that ended has been sent, or could not be."""
        self._ended.put(None)
        if self._enabled:
            self._thread.join()

    def trial_ended(self, name: str) -> None:
        """Ask for a trial's rows to be sent; returns at once."""
        self._ended.put(name)

    def _serve(self) -> None:
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        unsent: set[str] = set()
        while (name := self._ended.get()) is not None:
            from pipeline.tracking.mlflow_sync import sync  # costs seconds: not before a trial has ended

            unsent.add(name)
            # The copy first: elsewhere, the study goes on from the copy and sends again what comes after it.
            if self._study_sync and not self._copied(self._study_sync):
                continue
            report = sync(self._study_folder, trials=unsent)
            if not report.warning:
                unsent.clear()
            elif report.warning != self._last_warning:
                self._last_warning = report.warning
                self._progress.say(f"warning: {report.warning}")

    def _copied(self, study_sync: StudySync) -> bool:
        """Copy the study to its URI; return whether that worked."""
        try:
            study_sync.upload_study()
        except StorageError as error:
            self._progress.say(f"warning: {error}")
            return False
        return True
