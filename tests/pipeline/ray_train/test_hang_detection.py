"""Hang detection: silence within a stage is a hang; a slow first step, a slow step and a pause are none."""

import os

import pytest

from pipeline.ray_train.hang_detection import FACTOR, UNKNOWN, HangDetector, HangWatch
from pipeline.runtime.event_log import HUNG, read_events
from pipeline.runtime.heartbeat import FILE, Heartbeat
from tests.statuses import write_status


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def heartbeat(tmp_path):
    times = iter(range(1, 10**6))

    def write(stage, done, total):
        Heartbeat(tmp_path).write(stage, done, total, float("nan"))
        stamp = next(times) * 10**9
        os.utime(
            tmp_path / FILE, ns=(stamp, stamp)
        )  # two heartbeats may fall within a tick of the file system's clock

    return write


def check_for(detector, clock, seconds):
    """What it says, looking every half second."""
    for _ in range(int(seconds * 2)):
        clock.now += 0.5
        if why := detector.check():
            return why
    return ""


def test_a_silence_in_training_is_a_hang_and_the_reason_names_the_step(tmp_path, clock, heartbeat):
    detector = HangDetector([tmp_path], 10, clock)
    heartbeat("train", 1, 9)
    assert not check_for(detector, clock, 1)
    heartbeat("train", 2, 9)
    assert not check_for(detector, clock, 10)
    assert "after train 2/9" in check_for(detector, clock, 30)


def test_the_first_step_may_take_long_but_not_for_ever(tmp_path, clock, heartbeat):
    heartbeat("train", 3, 9)  # by the workers before
    detector = HangDetector([tmp_path], 10, clock)
    assert not check_for(detector, clock, 10 * UNKNOWN)
    assert "after its start" in check_for(detector, clock, 1)


def test_without_a_heartbeat_a_worker_with_another_disk_is_no_hang(tmp_path, clock, heartbeat):
    detector = HangDetector([tmp_path], 10, clock, other_disk=True)
    assert not check_for(detector, clock, 30 * UNKNOWN)
    heartbeat("train", 2, 9)  # both see the same disk after all
    assert "after train 2/9" in check_for(detector, clock, 30)


def test_after_a_restart_a_heartbeat_with_the_same_step_counts(tmp_path, clock, heartbeat):
    detector = HangDetector([tmp_path], 10, clock)
    heartbeat("train", 3, 9)
    assert check_for(detector, clock, 20)
    detector.restart()
    assert not check_for(detector, clock, 10 * UNKNOWN)
    heartbeat("train", 3, 9)
    assert check_for(detector, clock, 20)


def test_slow_steps_lengthen_the_silence_that_is_no_hang(tmp_path, clock, heartbeat):
    detector = HangDetector([tmp_path], 10, clock)
    for step in (1, 2, 3):
        heartbeat("train", step, 9)
        assert not check_for(detector, clock, 4)
    assert not check_for(detector, clock, FACTOR * 4 - 5)
    assert check_for(detector, clock, 10)


@pytest.mark.parametrize("progress", [("train", 9, 9), ("evaluate", 4, 4), ("rung", 3, 9)])
def test_between_stages_the_timeout_is_longer(tmp_path, clock, heartbeat, progress):
    detector = HangDetector([tmp_path], 10, clock)
    heartbeat("train", 1, 9)
    detector.check()
    heartbeat(*progress)
    assert not check_for(detector, clock, 10 * UNKNOWN)
    assert f"after {progress[0]} {progress[1]}/{progress[2]}" in check_for(detector, clock, 1)


def test_with_timeout_zero_nothing_is_a_hang(tmp_path, clock, heartbeat):
    detector = HangDetector([tmp_path], 0, clock)
    heartbeat("train", 1, 9)
    assert not check_for(detector, clock, 5000)


def test_the_workers_of_a_hung_trial_are_killed_once_per_start(tmp_path, monkeypatch):
    ended = tmp_path / "ended"
    write_status(ended)
    reasons = iter(["", "it hangs", "it hangs", "it hangs", "it hangs", "it hangs"])
    monkeypatch.setattr(HangDetector, "check", lambda self: next(reasons))
    watch, killed = HangWatch([tmp_path, ended], 10), []
    for start in (1, 2):
        watch.started(lambda start=start: killed.append(start))
        for _ in range(2):
            watch.polled()
    assert killed == [1, 2]
    watch.polled()
    watch.started(lambda: killed.append(3))
    watch.ended()
    watch.polled()
    assert killed == [1, 2], "nothing is killed while the workers are shut down"
    assert [event.why for event in read_events(tmp_path) if event.what == HUNG] == ["it hangs"] * 2
    assert not read_events(ended), "a trial of the cohort that was done"


def test_a_cohort_hangs_only_when_none_of_its_trials_goes_on(tmp_path, clock):
    trials = [tmp_path / name for name in "ab"]
    stamps = iter(range(1, 10**6))

    def beat(trial, done):
        trial.mkdir(exist_ok=True)
        Heartbeat(trial).write("train", done, 9, float("nan"))
        stamp = next(stamps) * 10**9
        os.utime(trial / FILE, ns=(stamp, stamp))

    detector = HangDetector(trials, 10, clock)
    beat(trials[0], 1)
    for done in range(1, 8):  # the other one alone for long
        beat(trials[1], done)
        assert not check_for(detector, clock, 9)
    beat(trials[0], 5)
    assert "after train 5/9" in check_for(detector, clock, 200)
