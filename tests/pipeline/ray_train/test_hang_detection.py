"""The watch for hangs: a silence in mid-stage is told, a slow first step, a slow step and a pause are not."""

import os

import pytest

from pipeline.ray_train.hang_detection import FACTOR, UNKNOWN, HangDetector
from pipeline.runtime.heartbeat import FILE, Heartbeat


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def say(tmp_path):
    times = iter(range(1, 10**6))

    def speak(stage, done, total):
        Heartbeat(tmp_path).write(stage, done, total, float("nan"))
        stamp = next(times) * 10**9
        os.utime(tmp_path / FILE, ns=(stamp, stamp))  # two words within a tick of the file system's clock

    return speak


def looks(watch, clock, seconds):
    """What it says, looking every half second."""
    for _ in range(int(seconds * 2)):
        clock.now += 0.5
        if why := watch.look():
            return why
    return ""


def test_a_silence_in_training_is_told_and_names_the_step(tmp_path, clock, say):
    watch = HangDetector(tmp_path, 10, clock)
    say("train", 1, 9)
    assert not looks(watch, clock, 1)
    say("train", 2, 9)
    assert not looks(watch, clock, 10)
    assert "after train 2/9" in looks(watch, clock, 30)


def test_the_first_step_may_take_long_but_not_for_ever(tmp_path, clock, say):
    say("train", 3, 9)  # of the start before
    watch = HangDetector(tmp_path, 10, clock)
    assert not looks(watch, clock, 10 * UNKNOWN)
    assert "after its start" in looks(watch, clock, 1)


def test_a_worker_whose_disk_is_another_gives_no_sign_and_is_not_ended_for_it(tmp_path, clock, say):
    watch = HangDetector(tmp_path, 10, clock, far=True)
    assert not looks(watch, clock, 30 * UNKNOWN)
    say("train", 2, 9)  # a disk that both see after all
    assert "after train 2/9" in looks(watch, clock, 30)


def test_after_a_restart_the_same_word_again_is_a_sign(tmp_path, clock, say):
    watch = HangDetector(tmp_path, 10, clock)
    say("train", 3, 9)
    assert looks(watch, clock, 20)
    watch.restart()
    assert not looks(watch, clock, 10 * UNKNOWN)
    say("train", 3, 9)
    assert looks(watch, clock, 20)


def test_what_is_slow_by_nature_gets_its_time(tmp_path, clock, say):
    watch = HangDetector(tmp_path, 10, clock)
    for step in (1, 2, 3):
        say("train", step, 9)
        assert not looks(watch, clock, 4)
    assert not looks(watch, clock, FACTOR * 4 - 5)
    assert looks(watch, clock, 10)


@pytest.mark.parametrize("word", [("train", 9, 9), ("evaluate", 4, 4), ("rung", 3, 9)])
def test_between_stages_nobody_knows_how_long(tmp_path, clock, say, word):
    watch = HangDetector(tmp_path, 10, clock)
    say("train", 1, 9)
    watch.look()
    say(*word)
    assert not looks(watch, clock, 10 * UNKNOWN)
    assert f"after {word[0]} {word[1]}/{word[2]}" in looks(watch, clock, 1)


def test_zero_waits_for_ever(tmp_path, clock, say):
    watch = HangDetector(tmp_path, 0, clock)
    say("train", 1, 9)
    assert not looks(watch, clock, 5000)
