"""Which steps have rows, and what is written when training ends."""

import math
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.config.settings import TrialSettings
from pipeline.data.loading.broken_frames import BrokenFrames
from pipeline.metrics.recorder import Measure
from pipeline.metrics.rows import Row, read_rows
from pipeline.metrics.run_place import label_number
from pipeline.metrics.timing import StepTimes
from pipeline.runtime.session import LocalSession
from pipeline.training.components.metrics_logger import MetricsLogger, open_recorder

Trial = Callable[..., TrialSettings]


def logger_in(
    folder: Path, settings: TrialSettings, times: StepTimes | None = None, slot: int = 0
) -> MetricsLogger:
    session = LocalSession(folder)
    session.slot = slot
    session.recipe = "abc"
    recorder = open_recorder(settings, session, "the plan", "0123")
    assert settings.train.steps is not None
    broken = BrokenFrames(settings.data.max_broken_frames)
    return MetricsLogger(recorder, session, settings, settings.train.steps, times or StepTimes(), broken)


def rows(folder: Path) -> list[Row]:
    path = folder / "rows.jsonl"
    return read_rows(path) if path.exists() else []


def test_every_few_steps_and_the_last_one_have_rows(trial: Trial, tmp_path: Path) -> None:
    logger = logger_in(tmp_path / "t", trial(steps=7, log_every=3))
    for step in range(1, 8):
        logger.after_step(step, [Measure("loss", "", step / 2), Measure("scale", "m", 1.0, site="a.b")])
    got = [(row.step, row.metric, row.site, row.value) for row in rows(tmp_path / "t")]
    assert got == [
        (step, *row) for step in (3, 6, 7) for row in (("loss", "", step / 2), ("scale", "a.b", 1.0))
    ]


def test_rows_carry_what_all_rows_of_the_trial_share(trial: Trial, tmp_path: Path) -> None:
    logger_in(tmp_path / "t", trial(seed=3)).add(2, [Measure("x", "m", 1.0)])
    (row,) = rows(tmp_path / "t")
    assert (row.study, row.trial, row.plan, row.seed) == ("test", "t", "the plan", 3)
    assert (row.recipe_digest, row.device) == ("abc", "cpu")
    assert row.versions.endswith("data=0123")


def test_at_the_end_there_are_times_and_skipped_frames_if_any_may_be(trial: Trial, tmp_path: Path) -> None:
    settings, clock = trial(), StepTimes()
    for _ in range(2):
        clock.add(0.1, 0.2, 0.3)
    logger_in(tmp_path / "none", settings, clock).finish(2)
    times = ["step_ms", "data_wait_ms", "train_samples_per_s", "step_trunk_ms", "step_own_ms"]
    assert [row.metric for row in rows(tmp_path / "none")] == times
    settings = replace(settings, data=replace(settings.data, max_broken_frames=1))
    logger_in(tmp_path / "some", settings, clock).finish(2)
    assert [row.metric for row in rows(tmp_path / "some")] == [*times, "broken_frames"]


def test_when_and_where_a_training_starts_is_a_row_of_every_start(trial: Trial, tmp_path: Path) -> None:
    before = time.time()
    logger = logger_in(tmp_path / "t", trial(), slot=3)
    logger.started(0)
    logger.started(2)
    found = [(row.step, row.metric, row.unit) for row in rows(tmp_path / "t")]
    names = [("start_time", "s"), ("slot", "label"), ("host", "label")]
    assert found == [(step, *name) for step in (0, 2) for name in names]
    start, slot, host = (row.value for row in rows(tmp_path / "t")[:3])
    assert before <= start <= time.time()
    assert slot == 3
    assert host == label_number(platform.node())
    assert platform.node() not in (tmp_path / "t" / "rows.jsonl").read_text()


def test_names_become_numbers_that_differ() -> None:
    numbers = {label_number(f"node-{index}") for index in range(100)}
    assert len(numbers) == 100
    assert all(float(number) == number < 2**32 for number in numbers)


def test_a_diverged_trial_has_a_row_and_other_ranks_write_none(trial: Trial, tmp_path: Path) -> None:
    settings = trial()
    logger_in(tmp_path / "t", settings).diverged(3)
    (row,) = rows(tmp_path / "t")
    assert (row.metric, row.step, math.isnan(row.value)) == ("loss", 3, True)
    session = LocalSession(tmp_path / "other")
    other = MetricsLogger(None, session, settings, 4, StepTimes(), BrokenFrames())
    other.diverged(3)
    assert rows(tmp_path / "other") == []
