"""Reports how far the training is."""

import time
from collections import deque

import numpy as np

from pipeline.runtime.session import Session

INTERVAL_S = 1.0
"""Seconds between two reports; a person reads a terminal no faster."""

RECENT = 50
"""Steps from which the time left is estimated, because speed drifts."""


class ProgressReporter:
    """Tells the session how many steps are done and how many seconds are left.

    Args:
        session: rank 0 reports to it.
        steps: steps of the whole training.
    """

    def __init__(self, session: Session, steps: int) -> None:
        self._session = session
        self._steps = steps
        self._reported_at = 0.0
        self._begun = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def before_step(self) -> None:
        """Mark the start of a step, before its batch is loaded."""
        self._begun = time.monotonic()

    def after_step(self, step: int) -> None:
        """Report, unless it was done a moment ago; the last step is always reported.

        Args:
            step: steps done.
        """
        now = time.monotonic()
        self._recent.append(now - self._begun)
        if self._session.rank > 0 or (now - self._reported_at <= INTERVAL_S and step < self._steps):
            return
        self._reported_at = now
        left = (self._steps - step) * float(np.median(self._recent))
        self._session.progress("train", step, self._steps, left)
