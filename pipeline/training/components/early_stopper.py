"""Measures a trial at the steps of its early stopping, and stops it there if it is clearly worse."""

from collections.abc import Callable

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
        evaluate: (steps done, metric, condition) -> value of the metric, of which rank 0's counts.
    """

    def __init__(
        self,
        rule: EarlyStopping,
        session: Session,
        logger: MetricsLogger,
        evaluate: Callable[[int, str, str], float],
    ) -> None:
        self._rule = rule
        self._session = session
        self._logger = logger
        self._evaluate = evaluate

    def after_step(self, step: int) -> bool:
        """Return whether the trial is stopped after this step.

        Args:
            step: steps done.
        """
        if not self._rule.has(step):
            return False
        value = self._evaluate(step, self._rule.metric, self._rule.condition)
        stopped = self._rule.stops(step, broadcast(value, self._session))
        if stopped:
            self._logger.add(step, [Measure(STOPPED, "steps", step)])
        return stopped
