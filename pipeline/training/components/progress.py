"""Reports how far the training is."""

import time

from pipeline.metrics.timing import StepClock
from pipeline.runtime.session import Session

INTERVAL_S = 1.0
"""Seconds between two reports; a person reads a terminal no faster."""


class ProgressReporter:
    """Tells the session how many steps are done and how many seconds are left.

    Args:
        session: rank 0 reports to it.
        steps: steps of the whole training.
        clock: estimates the time left.
    """

    def __init__(self, session: Session, steps: int, clock: StepClock) -> None:
        self._session = session
        self._steps = steps
        self._clock = clock
        self._reported_at = 0.0

    def after_step(self, step: int) -> None:
        """Report, unless it was done a moment ago; the last step is always reported.

        Args:
            step: steps done.
        """
        now = time.monotonic()
        if self._session.rank > 0 or (now - self._reported_at <= INTERVAL_S and step < self._steps):
            return
        self._reported_at = now
        self._session.progress("train", step, self._steps, self._clock.seconds_left(self._steps - step))
