"""One trial over several hosts: hosts are cut off, lose power, are given notice; its rows come out whole."""

import time
from pathlib import Path

import pytest

from pipeline.data.synthetic import generate
from tests.experiments.cluster.hosted import Run, numbers, redone, settings_of
from tests.experiments.cluster.hosts import Host, made_hosts, why_not

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(seconds=300),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]

NOTICE_S = 35
"""Seconds of notice; ``biaswise cluster watch`` tells Ray ten fewer."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    generate(root, seed=5, frames_per_scene=2, scenes_per_split={"mini_train": 2, "mini_val": 1}, workers=1)
    return root


def up(hosts: list[Host], logs: Path) -> tuple[Host, list[Host]]:
    """Start a head, and a node with two CPUs on every other host."""
    head, *others = hosts
    head.join(head, logs / "head.log", "--num-cpus=0", '--resources={"tune_driver": 1}')
    for i, host in enumerate(others):
        host.join(head, logs / f"{i}.log", "--num-cpus=2")
    return head, others


def lost(run: Run, host: Host, how: str) -> None:
    """Take a host away in mid-training, and wait until its trial trains without it."""
    run.beyond(run.newest())
    before, begun = len(run.starts()), time.monotonic()
    host.unplug() if how == "cable" else host.kill()
    run.wait(lambda: not host.ranks() or len(run.starts()) > before, "its workers end")
    print(f"{how}: the host has {host.ranks()} workers left after {time.monotonic() - begun:.0f} s")
    run.wait(lambda: len(run.starts()) > before, "it starts again")
    again = run.starts()[-1]
    print(f"{how}: started again after {time.monotonic() - begun:.0f} s")
    run.wait(lambda: run.step() > run.newest() > again, "it trains on")
    seconds = time.monotonic() - begun
    print(f"{how}: went on from step {again}, a checkpoint further after {seconds:.0f} s")
    host.kill()  # a host that was cut off may have workers that do not know it yet
    host.plug()


def test_a_trial_outlives_a_host_that_is_cut_off_and_one_that_is_given_notice(world, tmp_path):
    steps, every = 700, 20  # two minutes: a trial that is over before the notice shows nothing
    settings = settings_of(world, 2, steps, every)
    with made_hosts(2) as hosts:
        head, others = up(hosts, tmp_path)
        unbroken = Run(head.drive, settings, tmp_path / "trials" / "unbroken", forgiven=0)
        unbroken.end()
        run = Run(head.drive, settings, tmp_path / "trials" / "broken", forgiven=1)
        run.beyond(0)
        assert [host.ranks() for host in others] == [1, 1]
        first = next(host for host in others if run.first_rank() in host.pids())
        second = next(host for host in others if host is not first)

        # in the middle, the second rank's host goes silent: the first rank's takes both
        lost(run, second, "cable")
        assert first.ranks() == 2

        # that host comes back, and the other is given notice: it saves itself twice, and moves
        second.join(head, tmp_path / "again.log", "--num-cpus=2")
        begun = time.monotonic()
        first.give_notice(head, tmp_path, NOTICE_S)
        saved = []
        for _ in range(2):
            run.wait(
                lambda: run.newest() % every and run.newest() not in saved, "it saves itself on the notice"
            )
            saved.append(run.newest())
            print(f"notice: saved at step {saved[-1]} after {time.monotonic() - begun:.1f} s")
        run.wait(lambda: len(run.starts()) == 2, "it starts again")
        run.wait(lambda: run.step() > run.starts()[1], "it goes on elsewhere")
        print(f"notice: trains elsewhere after {time.monotonic() - begun:.0f} s")
        assert (first.ranks(), second.ranks()) == (0, 2)
        run.end()
    print(f"went on after steps {run.starts()}, steps trained again: {redone(run.folder)}")
    assert run.starts()[0] > 0
    assert run.starts()[1] >= saved[1]
    assert numbers(run.folder) == numbers(unbroken.folder)


def test_four_ranks_on_four_hosts_lose_a_cable_and_a_power_supply(world, tmp_path):
    settings = settings_of(world, 4, steps=100, every=10)
    with made_hosts(4) as hosts:
        head, others = up(hosts, tmp_path)
        unbroken = Run(head.drive, settings, tmp_path / "trials" / "unbroken", forgiven=0)
        unbroken.end()
        run = Run(head.drive, settings, tmp_path / "trials" / "broken", forgiven=2)
        run.beyond(0)
        assert [host.ranks() for host in others] == [1, 1, 1, 1]

        # the first rank's host goes silent, which has the lock of the trial's folder: three hosts take all
        first = next(host for host in others if run.first_rank() in host.pids())
        lost(run, first, "cable")
        assert sum(host.ranks() for host in others if host is not first) == 4

        # it comes back, and another one loses power
        first.join(head, tmp_path / "again.log", "--num-cpus=2")
        dead = next(host for host in others if host.ranks() and run.first_rank() not in host.pids())
        lost(run, dead, "power")
        assert sum(host.ranks() for host in others if host is not dead) == 4
        run.end()
    print(f"went on after steps {run.starts()}, steps trained again: {redone(run.folder)}")
    assert len(run.starts()) == 2
    assert min(run.starts()) > 0
    assert numbers(run.folder) == numbers(unbroken.folder)
