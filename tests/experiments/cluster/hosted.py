"""A trial on the machines of a cluster: started beside the head, watched through its folder."""

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from experiments.recipes.mini import smoke
from pipeline.config.settings import TrialSettings
from pipeline.metrics.rows import read_rows, select
from pipeline.runtime.event_log import read_events, starts_of
from tests.smallest import SMALLEST

PATIENCE_S = 400
"""Workers start in 15 s, on a machine that does much else in minutes."""

TIMES = ("ms", "samples/s", "GiB", "s", "label")
"""Units of what differs from run to run."""

Start = Callable[[list[str], Path], "subprocess.Popen[bytes]"]
"""Starts a command, with a file for what it says, where it finds the cluster in its environment."""


def settings_of(world: Path, workers: int, steps: int, every: int) -> TrialSettings:
    """Return a small trial on the data in ``world``, with a checkpoint after ``every`` steps."""
    base = smoke().trials[0]
    return replace(
        base,
        study="hosts",
        data=replace(base.data, train=(str(world),), val=str(world)),
        train=replace(base.train, steps=steps, warmup_steps=2, checkpoint_every=every),
        num_workers=workers,
        overrides=SMALLEST,
    )


class Run:
    """A trial under way.

    Args:
        start: starts its driver.
        settings: the trial.
        folder: its folder; made.
        forgiven: deaths of workers that it outlives.
    """

    def __init__(self, start: Start, settings: TrialSettings, folder: Path, forgiven: int) -> None:
        self.folder, self.log = folder, folder.with_suffix(".log")
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text(json.dumps(settings.to_dict()))
        code = f"import sys; sys.path[:0] = {sys.path!r}; import runpy"
        code += f"; runpy.run_path({__file__!r})['drive']({str(folder)!r}, {forgiven})"
        self.driver = start([sys.executable, "-c", code], self.log)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.driver.poll() is None, f"{what}: the trial ended\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"{what}\n{self.log.read_text()}"
            time.sleep(0.1)

    def newest(self) -> int:
        """Step of the newest checkpoint."""
        return max((int(p.name[5:]) for p in self.folder.glob("checkpoints/step_????????")), default=0)

    def step(self) -> int:
        """Step that it trained last; a line that is being written does not count."""
        rows = self.folder / "rows.jsonl"
        lines = rows.read_bytes().split(b"\n")[:-1] if rows.exists() else []
        return max((row["step"] for row in map(json.loads, lines) if row["metric"] == "loss"), default=0)

    def starts(self) -> list[int]:
        """Steps from which its workers went on, those of the first start left out."""
        return [event.step for event in starts_of(self.folder)][1:]

    def first_rank(self) -> int:
        """Process of rank 0, which wrote into the event log last."""
        return read_events(self.folder)[-1].pid

    def beyond(self, step: int) -> None:
        """Wait until it has trained further, with a checkpoint that it would go on from."""
        self.wait(lambda: self.step() > self.newest() > step, f"it trains beyond step {step}")

    def end(self) -> None:
        """Wait for the end; the trial has not failed."""
        with suppress(subprocess.TimeoutExpired):
            self.driver.wait(PATIENCE_S)
        assert self.driver.poll() == 0, self.log.read_text()


def drive(folder: str, forgiven: int) -> None:
    """Run by ``Run``: the trial under Ray Train, with neighbours that leave after its first checkpoint."""
    import ray

    from pipeline.ray_train import launch
    from pipeline.ray_train.cohort_run import CohortRun
    from pipeline.storage.trial_status import read_status

    launch.WORKER_FAILURES = forgiven
    settings = TrialSettings.from_dict(json.loads((Path(folder) / "settings.json").read_text()))
    with launch.ray_session(cpus=0):
        neighbours = [_occupy(node) for node in ray.nodes() if node["Resources"].get("CPU", 0) > 1]
        threading.Thread(target=_make_room, args=(Path(folder), neighbours), daemon=True).start()
        launch.run_under_ray(CohortRun({Path(folder).resolve(): settings}))
    status = read_status(Path(folder))
    assert not status.error, status.error + status.details


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


def numbers(folder: Path) -> dict[tuple[str, ...], float]:
    """Return every number that is no time; no row is there twice.

    Which kernels have a row depends on the time they took.
    """
    found: dict[tuple[str, ...], float] = {}
    for row in read_rows(folder / "rows.jsonl"):
        key = (row.metric, row.site, row.condition, row.scene, str(row.draw), str(row.step))
        assert key not in found, key
        found[key] = row.value if row.unit not in TIMES else math.nan
    return {key: value for key, value in found.items() if not math.isnan(value)}


def redone(folder: Path) -> list[int]:
    """Return how many steps were trained again after each restart."""
    losses = list(select(read_rows(folder / "rows.jsonl"), metric="loss"))
    starts = starts_of(folder)[1:]
    return [max(row.step for row in losses if row.time < event.time) - event.step for event in starts]


def is_worker(pid: int) -> bool:
    """Tell whether a process is a trial's worker."""
    with suppress(OSError):
        return b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
