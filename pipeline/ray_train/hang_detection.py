"""Ends the workers of a trial that has stopped making steps, so that Ray Train starts it again.

A rank that waits for ever in a collective, in a read or in a deadlock answers Ray's health checks all the
same; only the trial's own steps say that it is stuck. The watch sits in Ray Train's controller, a process of
its own, and looks at the trial's beacon.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from pipeline.runtime.event_log import HUNG, append_event
from pipeline.runtime.heartbeat import FILE, Progress, read_heartbeat

HANG_TIMEOUT_S = 600.0
"""Longest silence that is forgiven whatever the trial's pace: a checkpoint on a slow disk takes minutes."""

FACTOR = 10
"""Silence is forgiven for as many times the longest step of this start."""

WATCHED = ("train", "evaluate")
"""Stages that give a sign after each step or chunk; others are as long as they are."""

UNKNOWN = 6
"""Where nobody knows how long a silence lasts, before the first step and between stages, as many times the
patience is forgiven: an hour by default, for compiling, filling caches, waiting for data, measuring."""


class HangDetector:
    """Tells from a trial's beacon whether it hangs.

    Args:
        folder: the trial's.
        patience_s: silence that is always forgiven; 0 forgives every silence.
        clock: monotonic seconds.
        far: the workers may have a disk of their own, from which no sign ever comes: nothing is told then.
    """

    def __init__(
        self,
        folder: Path,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
        far: bool = False,
    ) -> None:
        self._folder, self._patience_s, self._clock, self._far = folder, patience_s, clock, far
        self.restart()

    def restart(self) -> None:
        """Begin anew: what the beacon says now is from before."""
        self._mark = self._stamp()
        self._word: Progress | None = None
        self._since = self._clock()
        self._longest = 0.0

    def look(self) -> str:
        """Return why the trial hangs, one sentence; empty if it does not."""
        now, mark = self._clock(), self._stamp()
        if mark != self._mark:
            self._hear(now, read_heartbeat(self._folder))
            self._mark = mark
            return ""
        silence, word = now - self._since, self._word
        if not self._patience_s or silence <= self._limit():
            return ""
        last = "its start" if word is None else f"{word.stage} {word.done}/{word.total}"
        return (
            f"no sign of life for {silence:.0f} s after {last} "
            f"(the longest wait before was {self._longest:.1f} s)"
        )

    def _limit(self) -> float:
        """Return how long a silence is forgiven now, seconds."""
        word = self._word
        if word is None and self._far:
            return math.inf
        if word is None or word.stage not in WATCHED or word.done >= word.total:
            return UNKNOWN * self._patience_s
        return max(self._patience_s, FACTOR * self._longest)

    def _hear(self, now: float, word: Progress | None) -> None:
        """Take a sign in, and how long it was waited for."""
        if word is not None and self._word is not None and word.stage == self._word.stage:
            self._longest = max(self._longest, now - self._since)
        self._word, self._since = word, now

    def _stamp(self) -> int:
        try:
            return (self._folder / FILE).stat().st_mtime_ns
        except FileNotFoundError:
            return 0


class HangCallback(WorkerGroupCallback):
    """Runs in Ray Train's controller: looks at each poll, and kills the workers of a trial that hangs.

    Ray Train then sees dead workers, counts a failure, and starts the trial again from its checkpoint.

    Args:
        folder: the trial's.
        patience_s, far: see ``HangDetector``.
    """

    def __init__(self, folder: Path, patience_s: float, far: bool = False) -> None:
        self._folder = folder
        self._watch = HangDetector(folder, patience_s, far=far)
        self._group: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Begin to watch new workers."""
        self._group = worker_group
        self._watch.restart()

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Look; kill if it hangs."""
        why = self._watch.look()
        if why and self._group is not None:
            append_event(self._folder, HUNG, why=why)
            for worker in self._group.get_workers():
                ray.kill(worker.actor)
            self._group = None

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Stop watching workers that are on their way out."""
        self._group = None
