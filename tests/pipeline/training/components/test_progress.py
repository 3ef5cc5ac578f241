"""Progress is reported now and then, and always at the end."""

import math
from pathlib import Path

import pytest
import torch

from pipeline.metrics.timing import StepClock
from pipeline.runtime.session import LocalSession
from pipeline.training.components import progress
from pipeline.training.components.progress import INTERVAL_S, ProgressReporter


class Listening(LocalSession):
    def __init__(self, rank: int = 0) -> None:
        super().__init__(Path("unused"))
        self.rank = rank
        self.heard: list[tuple[str, int, int, float]] = []

    def progress(self, stage: str, done: int, total: int, seconds_left: float) -> None:
        self.heard.append((stage, done, total, seconds_left))


def test_the_first_report_is_at_once_the_next_after_a_while_and_the_last_always(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    session = Listening()
    reporter = ProgressReporter(session, 6, StepClock(torch.device("cpu")))
    for step, seconds in enumerate((0, INTERVAL_S / 2, INTERVAL_S, INTERVAL_S / 2, 0.01, 0.01), 1):
        now += seconds
        reporter.after_step(step)
    assert [done for _, done, _, _ in session.heard] == [1, 3, 6]
    assert {(stage, total) for stage, _, total, _ in session.heard} == {("train", 6)}


def test_the_time_left_is_that_of_the_steps_that_are_left() -> None:
    session, clock = Listening(), StepClock(torch.device("cpu"))
    reporter = ProgressReporter(session, 1, clock)
    reporter.after_step(1)
    for _ in range(3):
        clock.begin()
        clock.fed()
        clock.end()
    reporter.after_step(1)
    assert math.isnan(session.heard[0][3])  # no step was timed
    assert session.heard[1][3] == 0.0


def test_other_ranks_report_nothing() -> None:
    session = Listening(rank=1)
    ProgressReporter(session, 1, StepClock(torch.device("cpu"))).after_step(1)
    assert session.heard == []
