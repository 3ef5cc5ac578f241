"""Progress is reported now and then, and always at the end."""

from pathlib import Path

import pytest

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
    reporter = ProgressReporter(session, 6)
    for step, seconds in enumerate((0, INTERVAL_S / 2, INTERVAL_S, INTERVAL_S / 2, 0.01, 0.01), 1):
        reporter.before_step()
        now += seconds
        reporter.after_step(step)
    assert [done for _, done, _, _ in session.heard] == [1, 3, 6]
    assert {(stage, total) for stage, _, total, _ in session.heard} == {("train", 6)}


def test_the_time_left_is_that_of_the_steps_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    session = Listening()
    reporter = ProgressReporter(session, 10)
    for step, seconds in enumerate((9.0, 2.0, 2.0), 1):
        reporter.before_step()
        now += seconds
        reporter.after_step(step)
        now += 7.0  # a checkpoint
    assert [left for *_, left in session.heard] == [9 * 9.0, 8 * 5.5, 7 * 2.0]


def test_other_ranks_report_nothing() -> None:
    session = Listening(rank=1)
    ProgressReporter(session, 1).after_step(1)
    assert session.heard == []
