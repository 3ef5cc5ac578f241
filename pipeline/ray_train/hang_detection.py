"""Kills the workers of a trial that has stopped making steps, so that Ray Train starts it again.

A worker that waits for ever in a collective, in a read or in a deadlock still answers Ray's health checks.
Only the trial's own steps show that it hangs. The watch runs in the process of Ray Train's controller and
reads the trial's heartbeat.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.runtime.event_log import HUNG, append_event
from pipeline.runtime.heartbeat import FILE, Progress, read_heartbeat

HANG_TIMEOUT_S = 600.0
"""A shorter silence is never a hang, however fast the trial is: a checkpoint on a slow disk takes minutes."""

FACTOR = 10
"""Nor is a silence shorter than this many times the longest step since the workers started."""

WATCHED = ("train", "evaluate")
"""Stages that write a heartbeat after each step or chunk."""

UNKNOWN = 6
"""Factor on the timeout where the length of a silence is unknown: before the first step and between stages.

By default that makes an hour, for compiling, filling caches, waiting for data and measuring."""


class HangDetector:
    """Decides from a trial's heartbeat whether the trial hangs.

    Args:
        folder: the trial's.
        timeout_s: silence that is never a hang; 0: no silence is a hang.
        clock: monotonic seconds.
        other_disk: the workers may have another disk, so that their heartbeat never arrives here. Then
            nothing counts as a hang before the first heartbeat.
    """

    def __init__(
        self,
        folder: Path,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        other_disk: bool = False,
    ) -> None:
        self._folder, self._timeout_s, self._clock, self._other_disk = folder, timeout_s, clock, other_disk
        self.restart()

    def restart(self) -> None:
        """Begin anew: the heartbeat that is there now was written by earlier workers."""
        self._modified = self._modification_time()
        self._heartbeat: Progress | None = None
        self._heard_at = self._clock()
        self._longest_s = 0.0

    def check(self) -> str:
        """Return why the trial hangs, one sentence; empty if it does not."""
        now, modified = self._clock(), self._modification_time()
        if modified != self._modified:
            self._take(now, read_heartbeat(self._folder))
            self._modified = modified
            return ""
        silence_s, last = now - self._heard_at, self._heartbeat
        if not self._timeout_s or silence_s <= self._limit_s():
            return ""
        after = "its start" if last is None else f"{last.stage} {last.done}/{last.total}"
        return (
            f"no sign of life for {silence_s:.0f} s after {after} "
            f"(the longest wait before was {self._longest_s:.1f} s)"
        )

    def _limit_s(self) -> float:
        """Return the longest silence that is no hang now."""
        last = self._heartbeat
        if last is None and self._other_disk:
            return math.inf
        if last is None or last.stage not in WATCHED or last.done >= last.total:
            return UNKNOWN * self._timeout_s
        return max(self._timeout_s, FACTOR * self._longest_s)

    def _take(self, now: float, heartbeat: Progress | None) -> None:
        """Keep a heartbeat, and how long the wait for it was."""
        last = self._heartbeat
        if heartbeat is not None and last is not None and heartbeat.stage == last.stage:
            self._longest_s = max(self._longest_s, now - self._heard_at)
        self._heartbeat, self._heard_at = heartbeat, now

    def _modification_time(self) -> int:
        try:
            return (self._folder / FILE).stat().st_mtime_ns
        except FileNotFoundError:
            return 0


class HangWatch:
    """A ``ray_internals.WorkerGroupWatch`` that kills the workers of a trial that hangs.

    Ray Train then finds dead workers, counts a failure, and starts the trial again from its checkpoint.

    Args:
        folder: the trial's.
        timeout_s: of ``HangDetector``.
        other_disk: of ``HangDetector``.
    """

    def __init__(self, folder: Path, timeout_s: float, other_disk: bool = False) -> None:
        self._folder = folder
        self._detector = HangDetector(folder, timeout_s, other_disk=other_disk)
        self._kill_workers: Callable[[], None] | None = None

    def started(self, kill_workers: Callable[[], None]) -> None:
        """Begin to watch new workers."""
        self._kill_workers = kill_workers
        self._detector.restart()

    def polled(self) -> None:
        """Kill the workers if the trial hangs."""
        reason = self._detector.check()
        if reason and self._kill_workers is not None:
            append_event(self._folder, HUNG, why=reason)
            self._kill_workers()
            self._kill_workers = None

    def ended(self) -> None:
        """Stop watching workers that are being shut down."""
        self._kill_workers = None
