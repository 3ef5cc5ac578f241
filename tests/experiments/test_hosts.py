"""One trial over several hosts: hosts are cut off, lose power, are given notice; its rows come out whole."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hosts import PATIENCE_S, PORT, Host, made_hosts, why_not  # a helper of this folder; no package

from experiments.recipes import smoke
from pipeline.beacon import last_word
from pipeline.data.synth import generate
from pipeline.rows import read_rows, select
from pipeline.settings import TrialSettings
from pipeline.writer import LOCK

LONG = "BIASWISE_LONG_TESTS"
"""Environment variable: set, the tests that take minutes and a machine of their own run too."""

pytestmark = [
    pytest.mark.skipif(not os.environ.get(LONG), reason=f"takes minutes; {LONG}=1 runs it"),
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]

SMALL = {
    "model.image_size": [48, 112],
    "model.pts_branch.grid_shape": [64, 64],
    "model.pts_bbox_head.num_query": 24,
    "model.pts_bbox_head.depth_num": 8,
    "model.pts_bbox_head.denoising.scalar": 1,
}
TIMES = ("ms", "samples/s", "GiB")
"""Units of what differs from run to run."""


class Run:
    """A trial under way: where its ranks are, how far it is, and whether it ever went back too far."""

    def __init__(self, hosts: list[Host], settings: TrialSettings, folder: Path, log: Path) -> None:
        self.hosts, self.folder, self.log = hosts, folder, log
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text(json.dumps(settings.to_dict()))
        code = f"import sys; sys.path[:0] = {sys.path!r}; import runpy"
        code += f"; runpy.run_path({__file__!r})['drive']({str(folder)!r})"
        head = hosts[0]
        self.driver = head.start([sys.executable, "-c", code], log, RAY_ADDRESS=f"{head.address}:{PORT}")
        self.words: list[int] = []
        self._ear = threading.Thread(target=self._listen, daemon=True)
        self._ear.start()

    def _listen(self) -> None:
        while self.driver.poll() is None:
            word = last_word(self.folder)
            if word and word.stage == "train" and word.done != (self.words or [0])[-1]:
                self.words.append(word.done)
            time.sleep(0.1)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.driver.poll() is None, f"{what}: the trial ended\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"{what}\n{self.log.read_text()}"
            time.sleep(0.1)

    def newest(self) -> int:
        """Step of the newest checkpoint."""
        return max((int(p.name[5:]) for p in self.folder.glob("checkpoints/step_????????")), default=0)

    def further(self, steps: int = 2) -> None:
        """Wait until it has written a checkpoint more, and trained beyond it."""
        before = self.newest()
        self.wait(lambda: self.newest() > before and self.words[-1:] > [self.newest()], "it trains")

    def host_of_first_rank(self) -> Host:
        """The host whose worker holds the lock of the trial's folder."""
        lock = str(self.folder / LOCK)
        return next(host for host in self.hosts if any(lock in links(pid) for pid in host.pids()))

    def ranks_on(self, *hosts: Host) -> list[int]:
        """How many workers each host has; one that was cut off may not know yet that it has lost its own."""
        return [sum(trains(pid) for pid in host.pids()) for host in hosts]

    def end(self) -> None:
        """Wait for the end; the trial has not failed."""
        with suppress(subprocess.TimeoutExpired):
            self.driver.wait(PATIENCE_S)
        assert self.driver.poll() == 0, self.log.read_text()
        self._ear.join()


def links(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(os.readlink(path))
    return found


def trains(pid: int) -> bool:
    with suppress(OSError):
        return b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def drive(folder: str) -> None:
    """Run by ``Run`` on the head: the trial under Ray Train, no failure forgiven but what is ``FORGIVEN``."""
    import ray

    from pipeline.launch import ray_session, run_under_ray

    settings = TrialSettings.from_dict(json.loads((Path(folder) / "settings.json").read_text()))
    with ray_session(cpus=0):
        neighbours = [_occupy(node) for node in ray.nodes() if node["Resources"].get("CPU", 0) > 1]
        timer = threading.Thread(target=_make_room, args=(Path(folder), neighbours), daemon=True)
        timer.start()
        finished = run_under_ray(settings, Path(folder), max_failures=int(os.environ.get("FORGIVEN", "1")))
    assert not finished.error, finished.error + finished.details


def _occupy(node: dict) -> object:
    """Take one CPU of a host, as another trial's worker would, so that this trial spreads over the hosts."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    made = ray.remote(num_cpus=1, scheduling_strategy=pinned)(_Neighbour).remote()
    ray.get(made.here.remote())
    return made


class _Neighbour:
    def here(self) -> bool:
        return True


def _make_room(folder: Path, neighbours: list) -> None:
    import ray

    while not any(folder.glob("checkpoints/step_*")):
        time.sleep(0.1)
    for neighbour in neighbours:
        ray.kill(neighbour)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("world")
    generate(root, seed=5, frames_per_scene=2, scenes_per_split={"mini_train": 2, "mini_val": 1}, workers=1)
    return str(root)


def settings_of(world: str, workers: int, steps: int) -> TrialSettings:
    base = smoke().trials[0]
    return replace(
        base,
        study="hosts",
        data=replace(base.data, train=(world,), val=world),
        train=replace(
            base.train, steps=steps, batch_size=1, warmup_steps=2, checkpoint_every=10, log_every=1
        ),
        conditions=("clean",),
        workers=workers,
        overrides=tuple((key, json.dumps(value)) for key, value in SMALL.items()),
    )


def check_rows(folder: Path, steps: int) -> None:
    """Every row is there, and once."""
    rows = read_rows(folder / "rows.jsonl")
    assert [row.step for row in select(rows, metric="loss")] == [*range(1, steps + 1)]
    keys = [(row.metric, row.site, row.condition, row.scene, row.step) for row in rows]
    assert len(keys) == len(set(keys))
    assert len(list(select(rows, metric="NDS", condition="clean", scene=""))) == 1


def test_a_trial_outlives_a_host_that_is_cut_off_and_one_that_is_given_notice(world, tmp_path):
    steps = 100
    with made_hosts(2) as hosts:
        head, *others = hosts
        head.join(head, tmp_path / "head.log", "--num-cpus=0", '--resources={"tune_driver": 1}')
        for i, host in enumerate(others):
            host.join(head, tmp_path / f"{i}.log", "--num-cpus=2")
        run = Run(hosts, settings_of(world, 2, steps), tmp_path / "trials" / "one", tmp_path / "driver.log")
        run.further()
        assert run.ranks_on(*others) == [1, 1]

        # in the middle, the second rank's host goes silent: the first rank's takes both
        first = run.host_of_first_rank()
        lost = next(host for host in others if host is not first)
        kept, begun = run.newest(), time.monotonic()
        lost.unplug()
        run.wait(lambda: run.newest() > kept, "it recovers")
        print(f"cut off: trains on after {time.monotonic() - begun:.0f} s, from step {kept}")
        assert run.ranks_on(first) == [2]

        # that host comes back, and the other is given notice: a checkpoint at once, and the trial moves
        lost.kill()
        lost.plug()
        lost.join(head, tmp_path / "again.log", "--num-cpus=2")
        begun, mark = time.monotonic(), len(run.words)
        drain(head, first)
        run.wait(lambda: run.newest() % 10, "it saves itself on the notice")
        saved = run.newest()
        print(f"notice: saved at step {saved} after {time.monotonic() - begun:.1f} s")
        run.wait(lambda: run.newest() > saved, "it goes on elsewhere")
        run.wait(lambda: run.ranks_on(first, lost) == [0, 2], "it moves")
        print(f"notice: trains elsewhere after {time.monotonic() - begun:.0f} s")
        run.end()
    check_rows(run.folder, steps)
    assert min(returns(run.words), default=steps) > kept, run.words  # never from the start
    assert min(returns(run.words[mark:]), default=steps) > saved, run.words


def test_three_ranks_on_four_hosts_lose_a_cable_and_a_power_supply(world, tmp_path, monkeypatch):
    steps = 80
    monkeypatch.setenv("FORGIVEN", "2")
    with made_hosts(4) as hosts:
        head, *others = hosts
        head.join(head, tmp_path / "head.log", "--num-cpus=0", '--resources={"tune_driver": 1}')
        for i, host in enumerate(others):
            host.join(head, tmp_path / f"{i}.log", "--num-cpus=1")
        settings = settings_of(world, 3, steps)
        unbroken = Run(hosts, settings, tmp_path / "trials" / "unbroken", tmp_path / "unbroken.log")
        unbroken.end()
        run = Run(hosts, settings, tmp_path / "trials" / "broken", tmp_path / "broken.log")
        run.further()
        assert sum(run.ranks_on(*others)) == 3

        # the first rank's host goes silent, which has the lock of the trial's folder: the spare host steps in
        lost, kept, begun = run.host_of_first_rank(), run.newest(), time.monotonic()
        lost.unplug()
        run.wait(lambda: run.newest() > kept, "it recovers")
        print(f"cut off: trains on after {time.monotonic() - begun:.0f} s, from step {kept}")
        assert run.ranks_on(*(host for host in others if host is not lost)) == [1, 1, 1]

        # it comes back as the spare, and another one loses power
        lost.kill()
        lost.plug()
        lost.join(head, tmp_path / "again.log", "--num-cpus=1")
        run.further()
        first, kept, begun = run.host_of_first_rank(), run.newest(), time.monotonic()
        dead = next(host for host in others if host is not first and run.ranks_on(host) == [1])
        dead.kill()
        run.wait(lambda: run.newest() > kept, "it recovers")
        print(f"no power: trains on after {time.monotonic() - begun:.0f} s, from step {kept}")
        assert run.ranks_on(*(host for host in others if host is not dead)) == [1, 1, 1]
        run.end()
    check_rows(run.folder, steps)
    assert numbers(run.folder) == numbers(unbroken.folder)
    assert min(returns(run.words), default=steps) > 10, run.words


def numbers(folder: Path) -> dict[tuple[str, ...], float]:
    """Every number that is no time."""
    rows = [row for row in read_rows(folder / "rows.jsonl") if row.unit not in TIMES]
    return {(row.metric, row.site, row.condition, row.scene, str(row.step)): row.value for row in rows}


def returns(words: list[int]) -> list[int]:
    """Where it went on after each restart, as far as it went back for it."""
    return [after for before, after in itertools.pairwise(words) if after < before]


def drain(head: Host, host: Host) -> None:
    """Tell Ray that a host ends in ten seconds, as ``biaswise cluster watch`` does on a spot machine."""
    code = "import ray, sys; ray.init(log_to_driver=False); nodes = ray.nodes(); "
    code += "print(next(n['NodeID'] for n in nodes if n['Alive'] and n['NodeManagerAddress'] == sys.argv[1]))"
    log, address = head.ray / "drain.log", f"{head.address}:{PORT}"
    ask = head.start([sys.executable, "-c", code, host.address], log, RAY_ADDRESS=address)
    assert ask.wait(PATIENCE_S) == 0, log.read_text()
    node = log.read_text().split()[-1]
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "drain-node",
        "--address",
        address,
        "--node-id",
        node,
    ]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
    told = head.start([*command, "--deadline-remaining-seconds", "10"], log, RAY_ADDRESS=address)
    assert told.wait(PATIENCE_S) == 0, log.read_text()
