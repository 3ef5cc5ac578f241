"""A process that keeps cohorts and runs their steps when it is asked: of this study and of ``scaling``."""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# torch and the models are imported by the workers, after OMP_NUM_THREADS is set

CONFIGS = {
    "mini": ("experiments/configs/cmt_aqr_pillar_mini.py", 2, "cpu"),
    "r50": ("experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py", 4, "cuda"),
    "vov": ("experiments/configs/cmt_aqr_voxel0075_vov_1600x640_cbgs.py", 2, "cuda"),
}
FRAMES, WARM = 4, 4  # batches that steps go round; a GPU runs a size once, captures it, and replays it
GIB = 2.0**30
DATABASE = "database"  # of cut-out objects, below the dataset's root


def make_data(name: str, root: Path, workers: int = 2) -> None:
    """Write the dataset from which loading is timed, with a database of cut-out objects to paste.

    At full size its images and sweeps have nuScenes' size; what is there already is kept.
    """
    from pipeline.data.augmentation.object_database_writer import write_database
    from pipeline.data.formats.open import open_source
    from pipeline.data.synthetic import generate
    from pipeline.data.synthetic.sensor_rig import FULL, MINI

    splits, rig = {"mini_train": 1, "mini_val": 1}, MINI if CONFIGS[name][2] == "cpu" else FULL
    generate(root, 0, frames_per_scene=4, scenes_per_split=splits, workers=workers, rig=rig)
    if not (root / DATABASE).exists():
        write_database(open_source(root, "v1.0-mini", "mini_train"), root / DATABASE)


@dataclass(frozen=True)
class Place:
    """Where a worker runs.

    Attributes:
        rank: among the workers that train together.
        world_size: their number; above 1 they form a process group, NCCL on GPUs and gloo on CPUs.
        port: of the group's store on this machine.
        gpu: number of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    port: int = 0
    gpu: int = 0


ALONE = Place()


class Worker:
    """Cohorts in a process of their own; ``sizes`` are their numbers of arms."""

    def __init__(self, name: str, sizes: list[int], threads: int, data: Path, place: Place = ALONE) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self._process = context.Process(
            target=serve, args=(name, sizes, threads, data, place, other), daemon=True
        )
        self._process.start()
        other.close()

    def send(self, *request: Any) -> None:
        """Ask for something; ``answer`` waits for it."""
        self.pipe.send(request)

    def answer(self) -> Any:
        """Return the next answer; the first one says that the worker is ready."""
        return self.pipe.recv()

    def end(self) -> None:
        """End the process."""
        self.pipe.send(None)
        self._process.join()


def serve(name: str, sizes: list[int], threads: int, data: Path, place: Place, pipe: Connection) -> None:
    """Run in a worker: build the cohorts, and answer until None comes."""
    with tempfile.TemporaryDirectory() as folder, _group(CONFIGS[name][2], place):
        arms = Arms(settings_of(name, data, threads, place.world_size), sizes, Path(folder), place)
        arms.steps(WARM)
        pipe.send(True)
        while (request := pipe.recv()) is not None:
            what, *given = request
            pipe.send(getattr(arms, what)(*given))


@contextmanager
def _group(kind: str, place: Place) -> Iterator[None]:
    """Join the process group of the workers that train together, if there are several."""
    import torch

    if kind == "cuda":
        torch.cuda.set_device(place.gpu)
    if place.world_size == 1:
        yield
        return
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(place.port)}
    backend = "nccl" if kind == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, rank=place.rank, world_size=place.world_size)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


class Arms:
    """Cohorts that train in turn."""

    def __init__(self, settings: list[Any], sizes: list[int], folder: Path, place: Place) -> None:
        import torch

        from pipeline.data.synthetic.random_frames import stand_in_frame
        from pipeline.runtime.determinism import deterministic
        from pipeline.runtime.session import LocalSession
        from pipeline.training.cohort import Arm, Cohort

        kind, batch = settings[0].device, settings[0].train.batch_size
        self._device = torch.device(kind, place.gpu) if kind == "cuda" else torch.device(kind)
        deterministic(self._device, settings[0].torch_threads)
        trials = cycle(settings)

        def session(trial: Path) -> LocalSession:
            made = LocalSession(trial, self._device)
            made.rank, made.world_size = place.rank, place.world_size
            return made

        self._cohorts = [
            Cohort([Arm(next(trials), session(folder / f"{i}-{j}")) for j in range(size)])
            for i, size in enumerate(sizes)
        ]
        height, width = self._cohorts[0].trainers[0].model.image_size
        first = place.rank * FRAMES * batch
        frames = [stand_in_frame(first + i, (height, width)) for i in range(FRAMES * batch)]
        self._batches = [frames[i * batch : (i + 1) * batch] for i in range(FRAMES)]
        self._done = 0

    def steps(self, count: int) -> dict[str, float]:
        """Run steps of all cohorts in turn; return wall-clock and CPU milliseconds of one step of all."""
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            self._step()
        self._read()
        took = {"wall_ms": time.perf_counter() - wall, "cpu_ms": time.process_time() - cpu}
        return {key: 1e3 * value / count for key, value in took.items()}

    def _step(self) -> None:
        for cohort in self._cohorts:
            cohort.step(self._done, self._batches[self._done % FRAMES])
        self._done += 1

    def _read(self) -> None:
        for cohort in self._cohorts:
            for trainer in cohort.trainers:
                trainer.read()  # waits for the device

    def parts(self) -> dict[str, float]:
        """Return the medians of the trunk and of an arm's own part, as the rows of a trial have them."""
        found: dict[str, list[float]] = {"step_trunk_ms": [], "step_own_ms": []}
        for trainer in (t for cohort in self._cohorts for t in cohort.trainers):
            for measure in trainer.times.measures(1):
                found.get(measure.metric, []).append(measure.value)
        return {key: statistics.mean(values) for key, values in found.items()}

    def busy(self, count: int) -> dict[str, float]:
        """Return the shares of the time in which the GPU computes or copies, and in which NCCL's kernels run.

        Both are NaN on a CPU.
        """
        import torch
        from torch.profiler import ProfilerActivity, profile

        if self._device.type != "cuda":
            return {"busy": float("nan"), "nccl": float("nan")}
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            begun = time.perf_counter()
            for _ in range(count):
                self._step()
            self._read()
            torch.cuda.synchronize()
            took = time.perf_counter() - begun
        events = [event for event in profiler.events() or [] if event.device_type.name == "CUDA"]
        talk = [event for event in events if "nccl" in event.name.lower()]
        return {"busy": _covered_s(events) / took, "nccl": _covered_s(talk) / took}

    def memory(self) -> float:
        """Return GiB: on a GPU what the allocator has reserved at most, on a CPU the process's peak."""
        import torch

        from pipeline.metrics.memory import peak_resident_gib

        on_gpu = self._device.type == "cuda"
        return torch.cuda.max_memory_reserved() / GIB if on_gpu else peak_resident_gib()

    def resident(self) -> float:
        """Return GiB of the host that the process has used at most."""
        from pipeline.metrics.memory import peak_resident_gib

        return peak_resident_gib()

    def load(self, count: int) -> float:
        """Return the CPU milliseconds in which this process reads and augments one batch of the dataset."""
        (cohort, *_), begun = self._cohorts, time.process_time()
        for _ in cohort.batches(0, count):
            pass
        return 1e3 * (time.process_time() - begun) / count


def _covered_s(events: Iterable[Any]) -> float:
    """Return the seconds in which at least one of the events runs."""
    covered, until = 0.0, 0.0
    for first, last in sorted((event.time_range.start, event.time_range.end) for event in events):
        covered += max(0.0, last - max(first, until))
        until = max(until, last)
    return covered / 1e6


def settings_of(name: str, data: Path, threads: int, workers: int) -> list[Any]:
    """Return the settings of an arm without a bias and of one with; the dataset is for what loading costs."""
    from pipeline.config.plan import Plan
    from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings
    from pipeline.training.benchmark import named_plans
    from pipeline.training.dataset import database_paths

    config, batch, device = CONFIGS[name]
    objects = {
        key: str(data / DATABASE) if key.endswith("info_path") else str(data)
        for key in database_paths(config, ())
    }
    plans = [named_plans(cuda=True)["plain"], named_plans(cuda=True)["mask"]]
    if device == "cpu":
        bias = {"aqr.*": "local/gathered", "decoder.*.self": "none/sdpa_flash"}
        plans = [Plan.of({**bias, "decoder.*.cross": f"{kind}/gathered"}) for kind in ("none", "window")]
    return [
        TrialSettings(
            study="cohort",
            config=config,
            plan=plan,
            data=DataSettings((str(data),), str(data)),
            train=TrainSettings(steps=10**6, batch_size=batch, warmup_steps=100),
            num_workers=workers,
            torch_threads=threads,
            device=device,
            overrides=tuple((key, json.dumps(place)) for key, place in objects.items()),
        )
        for plan in plans
    ]
