"""A trial that is told that its machine goes saves itself, twice, and another machine goes on from there."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray.train
from ray.train import PreemptionInfo

from pipeline.config.settings import TrialSettings
from pipeline.evaluation import evaluator
from pipeline.metrics.rows import read_rows
from pipeline.ray_train.worker import RaySession
from pipeline.runtime.session import LocalSession
from pipeline.storage.checkpoint import newest_checkpoint
from pipeline.training.components import preemption
from pipeline.training.components.preemption import SECOND_CHECKPOINT_S, PreemptionWatch
from pipeline.training.trial import run_trial

Trial = Callable[..., TrialSettings]


class Leaving(LocalSession):
    """Told after the second step; the last call comes after the fourth, the machine goes after the fifth."""

    left = (
        None,
        SECOND_CHECKPOINT_S + 40,
        SECOND_CHECKPOINT_S + 20,
        SECOND_CHECKPOINT_S - 1,
        SECOND_CHECKPOINT_S - 2,
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked = 0
        self.saved = []

    def report_checkpoint(self, checkpoint: Path | None) -> None:
        self.saved.append(checkpoint.name)

    def seconds_left(self) -> float | None:
        if self.asked == len(self.left):
            raise InterruptedError("the machine is gone")
        self.asked += 1
        return self.left[self.asked - 1]


def losses(folder: Path) -> dict[int, float]:
    return {row.step: row.value for row in read_rows(folder / "rows.jsonl") if row.metric == "loss"}


def test_a_notice_makes_two_checkpoints_and_nothing_is_lost(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "CALLS", 3)
    settings = trial(steps=7, checkpoint_every=1000)
    leaving = Leaving(tmp_path / "broken")
    with pytest.raises(InterruptedError):
        run_trial(settings, leaving)
    assert leaving.saved == ["step_00000002", "step_00000004"]
    assert str(newest_checkpoint(tmp_path / "broken" / "checkpoints")).endswith("step_00000004")
    run_trial(settings, LocalSession(tmp_path / "broken"))
    run_trial(settings, LocalSession(tmp_path / "unbroken"))
    assert losses(tmp_path / "broken") == losses(tmp_path / "unbroken")
    assert len(losses(tmp_path / "broken")) == 7


def test_ranks_agree_on_a_notice_and_exchange_nothing_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, exchanged = LocalSession(tmp_path), []
    monkeypatch.setattr(preemption, "broadcast", lambda own, _: exchanged.append(own) or preemption.LAST_CALL)
    watch = PreemptionWatch(session, 1)
    assert not watch.should_checkpoint(1)
    assert exchanged == []
    monkeypatch.setattr(session, "seconds_left", lambda: SECOND_CHECKPOINT_S + 40)
    assert watch.should_checkpoint(2)
    assert exchanged == [preemption.NOTICE]
    assert not watch.should_checkpoint(3)  # rank 0 has said that it was the last call


def test_the_notice_is_that_of_ray_train(monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[PreemptionInfo | None] = [
        None,
        PreemptionInfo(1000 * (time.time() + 30), {"node": [0]}),
        PreemptionInfo(None, {"node": [0]}),
    ]
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: notices.pop(0))
    session = object.__new__(RaySession)  # its constructor asks a worker of Ray Train for the rank
    assert session.seconds_left() is None
    assert session.seconds_left() == pytest.approx(30, abs=5)
    assert session.seconds_left() == math.inf


@pytest.mark.parametrize(("log_every", "asked"), [(1, [*range(1, 13)]), (3, [3, 6, 9, 12]), (50, [10])])
def test_the_session_is_asked_when_ranks_exchange_numbers_and_at_least_every_ten_steps(
    log_every: int, asked: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, steps = LocalSession(tmp_path), []
    watch = PreemptionWatch(session, log_every)
    for step in range(1, 13):
        monkeypatch.setattr(session, "seconds_left", lambda step=step: steps.append(step) or 60.0)
        assert watch.should_checkpoint(step) == (step == asked[0]), (
            "once for a notice that is far from its end"
        )
    assert steps == asked
