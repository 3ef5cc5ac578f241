"""A trial is evaluated at the rule's steps only, and stopped below its threshold only."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.config.early_stopping import STOPPED, EarlyStopping
from pipeline.metrics.recorder import Measure
from pipeline.runtime.session import LocalSession
from pipeline.training.components.early_stopper import EarlyStopper

RULE = EarlyStopping("mAP", "no_lidar", ((2, None), (4, 0.3)))


class Logger:
    def __init__(self) -> None:
        self.added: list[tuple[int, str, float]] = []

    def add(self, step: int, measures: Sequence[Measure]) -> None:
        self.added += [(step, measure.metric, measure.value) for measure in measures]


@pytest.mark.parametrize(("value", "stopped"), [(0.29, True), (0.3, False)])
def test_it_stops_below_the_threshold(value: float, stopped: bool) -> None:
    asked, logger = [], Logger()

    def evaluate(step: int, metric: str, condition: str) -> float:
        asked.append((step, metric, condition))
        return value

    stopper = EarlyStopper(RULE, LocalSession(Path("unused")), logger, evaluate)  # type: ignore[arg-type]
    assert [stopper.after_step(step) for step in (1, 2, 3, 4)] == [False, False, False, stopped]
    assert asked == [(2, "mAP", "no_lidar"), (4, "mAP", "no_lidar")]
    assert logger.added == ([(4, STOPPED, 4)] if stopped else [])
