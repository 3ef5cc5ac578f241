"""When a checkpoint is written, who is told, and what comes back."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.config.settings import TrialSettings
from pipeline.detector.build import build_model
from pipeline.runtime.session import LocalSession
from pipeline.storage.checkpoint import CheckpointError, Trained
from pipeline.training.components import checkpointer as module
from pipeline.training.components.checkpointer import Checkpointer
from pipeline.training.components.preemption import SECOND_CHECKPOINT_S

Trial = Callable[..., TrialSettings]


class Told(LocalSession):
    """Keeps what it is told; notices of preemption come as given."""

    def __init__(self, folder: Path, left: dict[int, float] | None = None) -> None:
        super().__init__(folder)
        self.told: list[Path | None] = []
        self.asked = 0
        self._left = left or {}

    def report_checkpoint(self, checkpoint: Path | None) -> None:
        self.told.append(checkpoint)

    def seconds_left(self) -> float | None:
        self.asked += 1
        return self._left.get(self.asked)


def saved_steps(
    monkeypatch: pytest.MonkeyPatch, session: Told, settings: TrialSettings, steps: int
) -> list[int]:
    """Return after which of the steps a checkpoint was saved."""
    saved: list[int] = []
    monkeypatch.setattr(module, "save_checkpoint", lambda folder, step, *_: saved.append(step))
    checkpointer = Checkpointer(session, settings, steps, SimpleNamespace())  # type: ignore[arg-type]
    for step in range(1, steps + 1):
        checkpointer.after_step(step)
    return saved


def test_every_few_steps_and_at_the_end(monkeypatch: pytest.MonkeyPatch, trial: Trial) -> None:
    session = Told(Path("unused"))
    assert saved_steps(monkeypatch, session, trial(checkpoint_every=3), 7) == [3, 6, 7]
    assert len(session.told) == 3
    assert session.asked == 7


def test_at_a_notice_and_shortly_before_the_end(monkeypatch: pytest.MonkeyPatch, trial: Trial) -> None:
    far, near = SECOND_CHECKPOINT_S + 30, SECOND_CHECKPOINT_S - 1
    session = Told(Path("unused"), {2: far, 3: far, 4: near, 5: near})
    assert saved_steps(monkeypatch, session, trial(checkpoint_every=1000), 6) == [2, 4, 6]


def test_other_ranks_save_nothing_and_take_part(monkeypatch: pytest.MonkeyPatch, trial: Trial) -> None:
    session = Told(Path("unused"))
    session.rank = 1
    assert saved_steps(monkeypatch, session, trial(checkpoint_every=2), 4) == []
    assert session.told == [None, None]


def test_what_was_saved_is_restored(trial: Trial, tmp_path: Path) -> None:
    def made(seed: int, settings: TrialSettings) -> tuple[Any, Checkpointer]:
        torch.manual_seed(seed)
        model = build_model(settings.config, settings.overrides, settings.plan)
        optimizer = torch.optim.AdamW(model.parameters())
        return model, Checkpointer(session, settings, 4, Trained(model, optimizer))

    session, settings = Told(tmp_path), trial()
    first, saving = made(0, settings)
    assert saving.restore() == 0
    saving.after_step(2)
    assert session.told == [tmp_path / "checkpoints" / "step_00000002"]
    second, restoring = made(1, settings)
    assert restoring.restore() == 2
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(CheckpointError, match="was written under settings"):
        made(0, trial(seed=5))[1].restore()
