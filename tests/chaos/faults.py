"""Faults: what may happen to a study, each done from outside - signals, files, servers, limits.

A fault strikes one of the trials under way, the victim, at a moment drawn from the seed.
"""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.runtime.event_log import starts_of
from tests.chaos.cluster import Cluster
from tests.machine import offspring

SPARE_BYTES = 2 * 2**20
"""What a process may still allocate after its memory was capped: less than a training step takes."""

AWAY_S = (1.0, 8.0)
"""For how long a server or a node stays away."""


@dataclass
class Scene:
    """A study under way, for a fault to strike.

    Attributes:
        rng: the run's; decides all that is left open.
        cluster: where it runs.
        nursery: process id of the nursery, whose children Ray's workers are.
        driver: process of the study driver.
        victim: folder of the trial that is hit.
        alone: whether its worker is the only one.
        study: folder of the study.
        world: folder of the data.
        mlflow: restarts and stops the tracking server.
        mend: what to do before the study is resumed.
        later: what to do while the study runs on: (monotonic time, what).
    """

    rng: random.Random
    cluster: Cluster
    nursery: int
    driver: "subprocess.Popen[bytes]"
    victim: Path
    alone: bool
    study: Path
    world: Path
    mlflow: "object"
    mend: list[Callable[[], None]] = field(default_factory=list)
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def after(self, what: Callable[[], None]) -> None:
        """Do something in a while."""
        self.later.append((time.monotonic() + self.rng.uniform(*AWAY_S), what))

    def heal(self) -> None:
        """Do what is to be done before the study is resumed."""
        while self.mend:
            self.mend.pop(0)()

    def worker(self, begun: bool = False) -> int:
        """Process id of the victim's worker.

        Args:
            begun: only one that has written its event log; otherwise also the only one there is.
        """
        alive = {
            pid for pid, words in offspring(self.nursery).items() if words.startswith("ray::RayTrainWorker")
        }
        started = [event.pid for event in starts_of(self.victim)]
        found = [pid for pid in reversed(started) if pid in alive] or (
            sorted(alive) if self.alone and not begun else []
        )
        if not found:
            raise LookupError("the trial has no worker")
        return found[0]

    def named(self, pattern: str) -> list[int]:
        """Process ids of Ray's processes with such a title."""
        return [pid for pid, words in offspring(self.nursery).items() if re.match(pattern, words)]


def _kill(pid: int) -> str:
    os.kill(pid, signal.SIGKILL)
    return f"SIGKILL {pid}"


def worker(scene: Scene) -> str:
    """Kill the victim's worker."""
    return _kill(scene.worker())


def trial_driver(scene: Scene) -> str:
    """Kill a trial's driver: the Tune trial, or Ray Train's controller."""
    kind = scene.rng.choice(("ray::ImplicitFunc", "ray::TrainController"))
    found = scene.named(kind)
    if not found:
        raise LookupError(f"no {kind} is alive")
    return f"{kind}: {_kill(scene.rng.choice(sorted(found)))}"


def study_driver(scene: Scene) -> str:
    """Kill the study driver."""
    scene.driver.kill()
    return "SIGKILL of the study driver"


def raylet(scene: Scene) -> str:
    """Kill the worker node; another one comes after a while."""
    scene.cluster.kill_worker_node()
    scene.after(scene.cluster.add_worker_node)
    return "SIGKILL of the worker node"


def head(scene: Scene) -> str:
    """Kill the head with its GCS; it is restarted before the study is resumed."""
    scene.cluster.kill_head()

    def restart() -> None:
        scene.cluster.stop()
        scene.cluster.start()

    scene.mend.append(restart)
    return "SIGKILL of head and GCS"


def mlflow_pause(scene: Scene) -> str:
    """Take the tracking server away for a while."""
    scene.mlflow.kill()
    scene.after(scene.mlflow.start)
    return "tracking server killed, comes back"


def mlflow_gone(scene: Scene) -> str:
    """Take the tracking server away until the study is over."""
    scene.mlflow.kill()
    return "tracking server killed"


def disk(scene: Scene) -> str:
    """Fill the disk of the study to its last few bytes."""
    ballast = scene.study.parent / "ballast"
    room = shutil.disk_usage(scene.study).free
    spare = scene.rng.choice((0, 4096, 200_000))
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        for _ in range(max(room - spare, 0) // 65536 + 1):
            file.write(b"\0" * 65536)
    scene.mend.append(lambda: ballast.unlink())
    return f"disk filled, {shutil.disk_usage(scene.study).free} bytes left"


def oom(scene: Scene) -> str:
    """Let the victim's worker allocate hardly more than it has."""
    pid = scene.worker()
    has = int(re.search(r"VmData:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()).group(1)) * 1024
    resource.prlimit(pid, resource.RLIMIT_DATA, (has + SPARE_BYTES, resource.RLIM_INFINITY))
    return f"RLIMIT_DATA of {pid} at {(has + SPARE_BYTES) / 2**20:.0f} MiB"


def hang(scene: Scene) -> str:
    """Stop the victim's worker: it lives, and does nothing.

    Once its trial has begun: Ray Train waits for ever for one that stops while it sets it up.
    """
    pid = scene.worker(begun=True)
    os.kill(pid, signal.SIGSTOP)
    return f"SIGSTOP {pid}"


def data(scene: Scene) -> str:
    """Remove a file of a frame; it is put back before the study is resumed."""
    files = sorted(path for path in scene.world.glob("samples/*/*") if path.is_file())
    chosen = scene.rng.choice(files)
    aside = scene.world.parent / f"aside-{chosen.name}"
    chosen.rename(aside)
    scene.mend.append(lambda: aside.rename(chosen))
    return f"{chosen.name} removed"


def nan(scene: Scene) -> str:
    """Do nothing: the victim goes on from a checkpoint after which it diverges."""
    return "the moments in a checkpoint are 1e30 times too high"


FAULTS: dict[str, Callable[[Scene], str]] = {
    fault.__name__: fault
    for fault in (
        worker,
        trial_driver,
        study_driver,
        raylet,
        head,
        hang,
        oom,
        disk,
        data,
        nan,
        mlflow_pause,
        mlflow_gone,
    )
}
"""Name -> what does it."""

LONELY = ("trial_driver",)
"""Faults that hit the victim for certain only if no other worker is under way."""

QUIET = ("oom", "disk", "data", "nan")
"""Faults that the study may not notice: the memory, the room, the file was not needed any more."""

TRACKED = ("mlflow_pause", "mlflow_gone")
"""Faults whose runs send rows to a tracking server."""
