import io
import re
import time

import pytest
from rich.console import Console

from experiments.study.progress import StudyProgress, task_bar
from pipeline.runtime.heartbeat import FILE, Heartbeat, Progress, read_heartbeat


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def text(console):
    return console.file.getvalue()


def test_one_plain_line_per_event_without_a_terminal(console, tmp_path):
    with StudyProgress(console, total=3, done=1) as progress:
        progress.started({"a": tmp_path})
        progress.ended("a")
        progress.started({"b": tmp_path})
        progress.ended("b", "it broke")
    lines = text(console).splitlines()
    assert [re.sub(r"^\d\d:\d\d  ", "", line) for line in lines] == [
        "a started",
        "a done in 0 s (2 of 3, about 0 s left)",
        "b started",
        "b failed after 0 s: it broke (3 of 3)",
    ]


def test_a_trial_that_died_before_it_started_is_told(console):
    with StudyProgress(console, total=1, done=0) as progress:
        progress.ended("a", "died")
    assert "a failed after 0 s: died (1 of 1)" in text(console)


def test_live_bar_shows_the_stage_of_each_trial(tmp_path):
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    with StudyProgress(console, total=2, done=0) as progress:
        progress.started({"window-none_s0_abc": tmp_path})
        Heartbeat(tmp_path).write("train", 30, 60, 12.0)
        deadline = time.monotonic() + 10
        while "window-none train 30/60" not in text(console) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "0/2 trials" in text(console)
    assert "window-none train 30/60" in text(console)
    assert "left" in text(console)


def test_a_cohort_is_a_line_at_its_start_and_a_line_for_every_end(console, tmp_path):
    folders = {f"{biases}_s0_0123456789ab": tmp_path / biases for biases in ("none-none", "window-none")}
    for folder in folders.values():
        folder.mkdir()
    with StudyProgress(console, total=2, done=0) as progress:
        progress.started(folders)
        for name in folders:
            progress.ended(name)
    lines = [re.sub(r"^\d\d:\d\d  ", "", line) for line in text(console).splitlines()]
    assert lines[0] == "a cohort of 2 (none-none_s0, window-none_s0) started"
    assert [line.partition(" done")[0] for line in lines[1:]] == list(folders)


def test_live_bar_shows_a_cohort_by_its_slowest_trial(tmp_path):
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    folders = {name: tmp_path / name for name in ("a", "b", "c")}
    with StudyProgress(console, total=3, done=0) as progress:
        for folder in folders.values():
            folder.mkdir()
        progress.started({name: folders[name] for name in "ab"})
        progress.started({"c": folders["c"]})
        for name, done in (("a", 20), ("b", 10), ("c", 30)):
            Heartbeat(folders[name]).write("train", done, 60, 12.0)
        deadline = time.monotonic() + 10
        while "2 trials train 10/60, c train 30/60" not in text(console) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "2 trials train 10/60, c train 30/60" in text(console)


def test_training_and_evaluation_add_up_to_a_whole_trial(console, tmp_path):
    heartbeat = Heartbeat(tmp_path)
    with StudyProgress(console, total=1, done=0) as progress:
        progress.started({"a": tmp_path})
        trial = progress._running["a"]
        seen = []
        for stage, done in (("train", 0), ("train", 4), ("evaluate", 2), ("evaluate", 4)):
            heartbeat._written_at = float("-inf")
            heartbeat.write(stage, done, 4, float("nan"))
            trial.update()
            seen.append(trial.fraction)
        assert seen == [0.0, 0.5, 0.75, 1.0]
        progress.ended("a")


def test_a_heartbeat_that_comes_too_fast_is_left_out(tmp_path):
    heartbeat = Heartbeat(tmp_path)
    heartbeat.write("train", 1, 9, 8.0)
    heartbeat.write("train", 2, 9, 7.0)
    assert read_heartbeat(tmp_path) == Progress("train", 1, 9, 8.0)
    heartbeat.write("train", 9, 9, 0.0)
    assert read_heartbeat(tmp_path) == Progress("train", 9, 9, 0.0)
    heartbeat.write("evaluate", 1, 9, float("nan"))
    assert read_heartbeat(tmp_path) == Progress("evaluate", 1, 9, None)


def test_a_trial_that_has_not_begun_has_no_heartbeat_and_an_old_one_is_removed(tmp_path, console):
    assert read_heartbeat(tmp_path) is None
    Heartbeat(tmp_path).write("train", 1, 2, 0.0)
    with StudyProgress(console, 1, 0) as progress:
        progress.started({"a": tmp_path})
    assert not (tmp_path / FILE).exists()


def test_bar_of_a_single_task(console):
    with task_bar(console, "making data") as advance:
        advance(1, 2)
    assert text(console) == "making data\n"
    live = Console(file=io.StringIO(), width=80, force_terminal=True)
    with task_bar(live, "making data") as advance:
        advance(1, 2)
    assert "making data" in text(live)
