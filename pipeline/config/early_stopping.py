"""Steps at which a trial is measured before its end, and stopped if it is clearly worse.

The steps are the rungs of ASHA (Li et al., arXiv 1810.05934). The threshold of each is fixed before the
trial starts, from trials that had ended by then. So the rows of a trial do not depend on which other trial
happened to be faster, and a study that was killed and resumed gives the rows of an unbroken one.
"""

from dataclasses import dataclass

STOPPED = "stopped_at_step"
"""Metric of the row of a trial that was stopped early: its value is the step, its unit ``steps``."""


@dataclass(frozen=True)
class EarlyStopping:
    """Where a trial is measured, and below what it stops.

    Attributes:
        metric: ``NDS`` or ``mAP``.
        condition: sensor condition it is measured under.
        thresholds: (step, floor) with increasing steps; a value below the floor, a fraction, stops the trial;
            None stops none.
    """

    metric: str = "NDS"
    condition: str = "clean"
    thresholds: tuple[tuple[int, float | None], ...] = ()

    def has(self, step: int) -> bool:
        """Return whether a trial is measured after this many steps."""
        return any(at == step for at, _ in self.thresholds)

    def stops(self, step: int, value: float) -> bool:
        """Return whether a trial that has this value, a fraction, after this step is stopped."""
        floor = dict(self.thresholds).get(step)
        return floor is not None and value < floor
