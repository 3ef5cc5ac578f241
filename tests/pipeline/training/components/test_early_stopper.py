"""A trial is stopped below its threshold only."""

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
    logger = Logger()
    stopper = EarlyStopper(RULE, LocalSession(Path("unused")), logger)  # type: ignore[arg-type]
    assert [stopper.stops(step, value) for step in (2, 4)] == [False, stopped]
    assert logger.added == ([(4, STOPPED, 4)] if stopped else [])
