"""What does a step cost an arm in a cohort? Cohorts, trials one after the other, and trials in processes.

Every way has processes of its own that keep their models. In each round the ways run in turn, in an order
drawn anew, so that a clock that drifts hits all alike. Frames are made up, so that nothing waits for a disk;
what loading costs is measured by itself. Half of the arms have no bias. Example, on one GPU:

    python docs/studies/cohort/measure.py r50 --arms 1 2 4 8 16 --packed 2 4 8 --out runs/cohort/r50

and to try the script, on a CPU: ``... measure.py mini --arms 1 2 4 --packed 2 --rounds 2 --steps 2``.
Writes ``summary.json`` and ``cohort.svg``.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline.data.synthetic import generate

# torch and the models are imported by the workers, after OMP_NUM_THREADS is set

CONFIGS = {
    "mini": ("experiments/configs/cmt_aqr_pillar_mini.py", 2, "cpu"),
    "r50": ("experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py", 4, "cuda"),
    "vov": ("experiments/configs/cmt_aqr_voxel0075_vov_1600x640_cbgs.py", 2, "cuda"),
}
FRAMES, WARM = 4, 4  # batches that steps go round; a GPU runs a size once, captures it, and replays it
GIB = 2.0**30


class Worker:
    """Cohorts in a process of their own; ``sizes`` are their numbers of arms."""

    def __init__(self, name: str, sizes: list[int], threads: int, data: Path) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(name, sizes, threads, data, other), daemon=True)
        self._process.start()
        other.close()

    def send(self, *request: Any) -> None:
        """Ask for something; ``answer`` waits for it."""
        self._pipe.send(request)

    def answer(self) -> Any:
        """Return the next answer; the first one says that the worker is ready."""
        return self._pipe.recv()

    def end(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def serve(name: str, sizes: list[int], threads: int, data: Path, pipe: Connection) -> None:
    """Run in a worker: build the cohorts, and answer until None comes."""
    with tempfile.TemporaryDirectory() as folder:
        arms = Arms(settings_of(name, data, threads), sizes, Path(folder))
        arms.steps(WARM)
        pipe.send(True)
        while (request := pipe.recv()) is not None:
            what, *given = request
            pipe.send(getattr(arms, what)(*given))


class Arms:
    """Cohorts that train in turn."""

    def __init__(self, settings: list[Any], sizes: list[int], folder: Path) -> None:
        import torch

        from pipeline.data.synthetic.random_frames import stand_in_frame
        from pipeline.runtime.determinism import deterministic
        from pipeline.runtime.session import LocalSession
        from pipeline.training.cohort import Arm, Cohort

        self._device, batch = torch.device(settings[0].device), settings[0].train.batch_size
        deterministic(self._device, settings[0].torch_threads)
        trials = cycle(settings)
        self._cohorts = [
            Cohort([Arm(next(trials), LocalSession(folder / f"{i}-{j}", self._device)) for j in range(size)])
            for i, size in enumerate(sizes)
        ]
        height, width = self._cohorts[0].trainers[0].model.image_size
        frames = [stand_in_frame(seed, (height, width)) for seed in range(FRAMES * batch)]
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

    def busy(self, count: int) -> float:
        """Return the share of the time in which the GPU computes or copies; NaN on a CPU."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        if self._device.type != "cuda":
            return float("nan")
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            begun = time.perf_counter()
            for _ in range(count):
                self._step()
            self._read()
            torch.cuda.synchronize()
            took = time.perf_counter() - begun
        spans = sorted((e.time_range.start, e.time_range.end) for e in profiler.events() or [] if _on_gpu(e))
        covered, until = 0.0, 0.0
        for first, last in spans:
            covered += max(0.0, last - max(first, until))
            until = max(until, last)
        return covered / 1e6 / took

    def memory(self) -> float:
        """Return GiB: on a GPU what the allocator has reserved at most, on a CPU the process's peak."""
        import torch

        from pipeline.metrics.memory import peak_resident_gib

        on_gpu = self._device.type == "cuda"
        return torch.cuda.max_memory_reserved() / GIB if on_gpu else peak_resident_gib()

    def load(self, count: int) -> float:
        """Return the CPU milliseconds in which this process reads and augments one batch of the dataset."""
        (cohort, *_), begun = self._cohorts, time.process_time()
        for _ in cohort.batches(0, count):
            pass
        return 1e3 * (time.process_time() - begun) / count


def _on_gpu(event: Any) -> bool:
    return bool(event.device_type.name == "CUDA")


def settings_of(name: str, data: Path, threads: int) -> list[Any]:
    """Return the settings of an arm without a bias and of one with; the dataset is for what loading costs."""
    from pipeline.config.plan import Plan
    from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings
    from pipeline.training.benchmark import named_plans

    config, batch, device = CONFIGS[name]
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
            torch_threads=threads,
            device=device,
        )
        for plan in plans
    ]


def main() -> None:
    """Measure all ways in interleaved rounds, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*CONFIGS])
    parser.add_argument("--arms", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="sizes of cohorts")
    parser.add_argument("--in-turn", type=int, default=0, help="trials in turn; 0: as --packed's most")
    parser.add_argument("--packed", type=int, nargs="+", default=[2, 4, 8], help="numbers of processes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="of one way in one round")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of a process")
    parser.add_argument("--out", type=Path, default=Path("runs/cohort"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    data = (asked.out / "data").resolve()
    generate(data, 0, frames_per_scene=8, scenes_per_split={"mini_train": 1, "mini_val": 1})
    many, given = max(asked.packed), (asked.threads, data)
    cohorts = {n: Worker(asked.name, [n], *given) for n in asked.arms}
    turn = asked.in_turn or many
    in_turn = Worker(asked.name, [1] * turn, *given)
    alone = [Worker(asked.name, [1], *given) for _ in range(many)]
    every = [*cohorts.values(), in_turn, *alone]
    for worker in every:
        worker.answer()
    ways: dict[str, list[Worker]] = {f"cohort {n}": [worker] for n, worker in cohorts.items()}
    ways[f"in turn {turn}"] = [in_turn]
    ways |= {f"packed {n}": alone[:n] for n in asked.packed}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    order = random.Random(0)
    for _ in range(asked.rounds):
        for way in order.sample(list(ways), len(ways)):
            for worker in ways[way]:
                worker.send("steps", asked.steps)
            took = [worker.answer() for worker in ways[way]]
            cpu = sum(one["cpu_ms"] for one in took)
            found[way].append({"wall_ms": max(one["wall_ms"] for one in took), "cpu_ms": cpu})
            print(way, found[way][-1], flush=True)
    summary = summarised(found, {n: _asked(worker, asked.steps) for n, worker in cohorts.items()})
    (asked.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary["medians"], indent=1))
    for worker in every:
        worker.end()
    draw(summary, asked.out / "cohort.svg")


def _asked(worker: Worker, steps: int) -> dict[str, Any]:
    """Ask a cohort for what is measured once."""
    found: dict[str, Any] = {}
    for what, given in {"parts": (), "memory": (), "load": (3,), "busy": (steps,)}.items():
        worker.send(what, *given)
        found[what] = worker.answer()
    return {**found.pop("parts"), **found}


def summarised(found: dict[str, list[dict[str, float]]], once: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the rounds, their medians per step of all arms and per arm, and what was measured once."""
    medians = {}
    for way, rounds in found.items():
        count = int(way.split()[-1])
        row = {key: statistics.median(one[key] for one in rounds) for key in ("wall_ms", "cpu_ms")}
        medians[way] = {**row, **{f"{key}_per_arm": value / count for key, value in row.items()}}
    first = min(once)
    for n, row in once.items():
        row["load_per_arm"] = row["load"] / n
        if n > first:
            row["memory_per_further_arm"] = (row["memory"] - once[first]["memory"]) / (n - first)
    return {"medians": medians, "cohorts": once, "rounds": found}


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draw the wall time of n arm-steps beside trunk + n x own, as one arm has them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for kind, marker in {"cohort": "o", "in turn": "s", "packed": "^"}.items():
        rows = {int(w.split()[-1]): m for w, m in summary["medians"].items() if w.startswith(kind)}
        counts = sorted(rows)
        axes.plot(counts, [rows[n]["wall_ms"] for n in counts], marker, label=kind, markersize=7)
    counts, parts = sorted(summary["cohorts"]), summary["cohorts"][min(summary["cohorts"])]
    line = [parts["step_trunk_ms"] + n * parts["step_own_ms"] for n in counts]
    axes.plot(counts, line, "k--", linewidth=1, label="trunk + n x own of one arm")
    axes.set(xlabel="arms", ylabel="wall time of a step of all arms, ms", xlim=0, ylim=0)
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
