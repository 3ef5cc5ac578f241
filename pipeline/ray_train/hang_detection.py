"""Kills workers whose trials have all stopped making steps, so that Ray Train starts them again.

A worker that waits for ever in a collective, in a read or in a deadlock still answers Ray's health checks.
Only the trials' own steps show that they hang. The watch runs in the process of Ray Train's controller and
reads the trials' heartbeats. The trials of a cohort take turns, so it hangs when none of them goes on.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.runtime.event_log import HUNG, append_event
from pipeline.runtime.heartbeat import FILE, Progress, read_heartbeat
from pipeline.storage.trial_status import read_status

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
    """Decides from the heartbeats of trials that run together whether they hang.

    Args:
        folders: the trials'.
        timeout_s: silence that is never a hang; 0: no silence is a hang.
        clock: monotonic seconds.
        other_disk: the workers may have another disk, so that their heartbeat never arrives here. Then
            nothing counts as a hang before the first heartbeat.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        other_disk: bool = False,
    ) -> None:
        self._folders, self._timeout_s, self._clock, self._other_disk = folders, timeout_s, clock, other_disk
        self.restart()

    def restart(self) -> None:
        """Begin anew: the heartbeats that are there now were written by earlier workers."""
        self._modified, _ = self._newest()
        self._heartbeat: Progress | None = None
        self._heard_at = self._clock()
        self._longest_s = 0.0

    def check(self) -> str:
        """Return why the trials hang, one sentence; empty if they do not."""
        now, (modified, folder) = self._clock(), self._newest()
        if modified != self._modified:
            self._take(now, read_heartbeat(folder))
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

    def _newest(self) -> tuple[int, Path]:
        """Return when the newest heartbeat was written, ns of Unix time, and by which trial; 0 for none."""
        return max((_modification_time(folder), folder) for folder in self._folders)


def _modification_time(folder: Path) -> int:
    try:
        return (folder / FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


class HangWatch:
    """A ``ray_internals.WorkerGroupWatch`` that kills workers that hang.

    Ray Train then finds dead workers, counts a failure, and starts the trials again from their checkpoints.

    Args:
        folders: of the trials that the workers run.
        timeout_s: of ``HangDetector``.
        other_disk: of ``HangDetector``.
    """

    def __init__(self, folders: Sequence[Path], timeout_s: float, other_disk: bool = False) -> None:
        self._folders = folders
        self._detector = HangDetector(folders, timeout_s, other_disk=other_disk)
        self._kill_workers: Callable[[], None] | None = None

    def started(self, kill_workers: Callable[[], None]) -> None:
        """Begin to watch new workers."""
        self._kill_workers = kill_workers
        self._detector.restart()

    def polled(self) -> None:
        """Kill the workers if they hang; the trials that have not ended say why in their logs."""
        reason = self._detector.check()
        if reason and self._kill_workers is not None:
            for folder in self._folders:
                if not read_status(folder).state.has_ended:
                    append_event(folder, HUNG, why=reason)
            self._kill_workers()
            self._kill_workers = None

    def ended(self) -> None:
        """Stop watching workers that are being shut down."""
        self._kill_workers = None
