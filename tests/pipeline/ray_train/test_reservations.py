"""Reservations: what dead controllers hold is freed, and workers that wait are told of."""

import pytest
import ray
from ray.util.placement_group import placement_group_table, remove_placement_group

from pipeline.ray_train.local_cluster import ray_session
from pipeline.ray_train.reservations import FIRST_WORD_S, LOOK_S, ReservationWatch, free_abandoned
from tests.stand_in_controller import TrainController, reserve


@pytest.fixture(scope="module")
def session():
    """Ray on this machine, with two CPUs."""
    with ray_session(cpus=2) as resources:
        yield resources


class OtherActor(TrainController):
    """An actor whose groups are none of our business."""


def state(group):
    return placement_group_table(group)["state"]


def test_what_a_dead_controller_holds_is_freed_and_nothing_else(session):
    dead, lost = reserve(1)
    alive, kept = reserve(0.25)
    stranger, theirs = reserve(0.25, OtherActor)
    assert all(group.wait(60) for group in (lost, kept, theirs))
    ray.kill(dead)
    ray.kill(stranger)
    assert state(lost) == "CREATED", "if Ray frees it by itself, pipeline/ray_train/reservations.py can go"
    assert [each.group for each in free_abandoned()] == [kept.id.hex()]
    assert [state(group) for group in (lost, kept, theirs)] == ["REMOVED", "CREATED", "CREATED"]
    assert len(free_abandoned()) == 1
    for group in (kept, theirs):
        remove_placement_group(group)
    ray.kill(alive)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_watch_frees_what_is_abandoned(session):
    dead, lost = reserve(1)
    assert lost.wait(60)
    ray.kill(dead)
    clock = Clock()
    watch = ReservationWatch(clock)
    clock.now += LOOK_S / 2
    assert watch.look() == ""
    assert state(lost) == "CREATED", "it does not ask the cluster all the time"
    clock.now += LOOK_S / 2
    assert watch.look() == ""
    assert state(lost) == "REMOVED"


def test_workers_that_wait_are_told_of_now_and_then(session):
    controller, group = reserve(64)
    clock = Clock()
    watch, said = ReservationWatch(clock), {}
    while clock.now < 5 * FIRST_WORD_S:
        clock.now += LOOK_S
        if sentence := watch.look():
            said[clock.now - LOOK_S] = sentence
    assert list(said) == [FIRST_WORD_S, 2 * FIRST_WORD_S, 4 * FIRST_WORD_S], "the first look begins to count"
    assert said[FIRST_WORD_S] == (
        "workers have waited 60 s for room: they need 1 worker with 64 CPU each; free now: 2 of 2 CPU"
    )
    remove_placement_group(group)
    clock.now += LOOK_S
    assert watch.look() == ""
    again = ray.get(controller.reserve.remote(64))
    for _ in range(int(FIRST_WORD_S / LOOK_S)):
        clock.now += LOOK_S
        assert watch.look() == "", "what waits now has not waited before"
    clock.now += LOOK_S
    assert watch.look().startswith("workers have waited 60 s for room")
    remove_placement_group(again)
    ray.kill(controller)
