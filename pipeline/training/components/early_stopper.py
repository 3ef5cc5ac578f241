"""Stops a trial at a step of its early stopping if it is clearly worse."""

from pipeline.config.early_stopping import STOPPED, EarlyStopping
from pipeline.metrics.recorder import Measure
from pipeline.runtime.collectives import broadcast
from pipeline.runtime.session import Session
from pipeline.training.components.metrics_logger import MetricsLogger


class EarlyStopper:
    """Decides, alike on all ranks, whether training goes on.

    Args:
        rule: at which steps to measure, and below which value to stop.
        session: its ranks learn rank 0's value.
        logger: gets a row if the trial is stopped.
    """

    def __init__(self, rule: EarlyStopping, session: Session, logger: MetricsLogger) -> None:
        self._rule = rule
        self._session = session
        self._logger = logger

    def stops(self, step: int, value: float) -> bool:
        """Return whether the trial is stopped after this step, at which the rule measures it.

        Args:
            step: steps done.
            value: of the rule's metric, a fraction, on rank 0.
        """
        stopped = self._rule.stops(step, broadcast(value, self._session))
        if stopped:
            self._logger.add(step, [Measure(STOPPED, "steps", step)])
        return stopped
