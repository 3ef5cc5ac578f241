"""How much faster are 2, 4 and 8 GPUs: for one trial, for a cohort, and for cohorts side by side?

Every way has processes of its own that keep their models: a trial over n ranks, a cohort of ``--arms``
over n ranks, and n such cohorts with a GPU each. In each round the ways run in turn, in an order drawn anew.
Frames are made up, so that nothing waits for a disk; what loading costs is measured by itself. A way that
fails or is late is named in the summary, and the others are kept. The same command goes on: a way that has
all its rounds in ``summary.json`` is left out. Gradients: ``tests/pipeline/training/test_ddp.py``.

    PYTHONPATH=$PWD python docs/studies/scaling/measure.py r50 --ranks 1 2 4 --out runs/scaling/r50

and to try it on a CPU, with gloo: ``... measure.py mini --ranks 1 2 4 --arms 2 --rounds 2 --steps 2``.
"""

import argparse
import json
import os
import random
import socket
import statistics
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "cohort"))
from worker import CONFIGS, Place, Worker, make_data  # the cohort study's

NCCL = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
"""NVLink multicast stays off: on a shared host a program that dies while it uses it can take GPUs along."""

TARGETS = {"trial": {4: 3.6, 8: 7.0}, "cohort": {4: 3.7, 8: 7.2}, "side by side": {4: 3.8, 8: 7.5}}
"""Way -> number of GPUs -> times the arm-steps per second of one GPU that are asked for."""


GRACE_S = 20.0
"""Time for an answer that was asked for just before ``--seconds`` were over."""


class Late(RuntimeError):
    """A worker died, or did not answer in time."""


class Group:
    """The workers of one way on n GPUs.

    Args:
        asked: the command line.
        way: one of ``TARGETS``.
        ranks: n.
        until: when ``--seconds`` are over, by the monotonic clock.
    """

    def __init__(self, asked: argparse.Namespace, way: str, ranks: int, until: float) -> None:
        self.arms = 1 if way == "trial" else asked.arms
        self.cohorts = ranks if way == "side by side" else 1
        together, port = ranks // self.cohorts, _free_port()
        self._patience_s, self._until = asked.patience, until
        self._workers = [
            Worker(asked.name, [self.arms], asked.threads, data_of(asked), place)
            for place in (Place(rank % together, together, port, rank) for rank in range(ranks))
        ]

    def answers(self) -> list[Any]:
        """Return what every worker answers next.

        Raises:
            Late: one has died or is late.
        """
        begun = time.monotonic()
        until = min(begun + self._patience_s, max(self._until, begun + GRACE_S))
        for worker in self._workers:
            if not wait([worker.pipe], max(0.0, until - time.monotonic())):
                raise Late(f"no answer within {time.monotonic() - begun:.0f} s")
        try:
            return [worker.answer() for worker in self._workers]
        except EOFError:
            raise Late("a worker died; its traceback is above") from None

    def ask(self, *request: Any) -> list[Any]:
        """Ask all workers for the same, at once."""
        for worker in self._workers:
            worker.send(*request)
        return self.answers()

    def end(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.end()


def main() -> None:
    """Measure all ways in interleaved rounds, and write what came out after each."""
    asked = arguments()
    until = time.monotonic() + asked.seconds
    for key, value in NCCL.items():
        os.environ.setdefault(key, value)
    asked.out.mkdir(parents=True, exist_ok=True)
    make_data(asked.name, data_of(asked))
    path = asked.out / "summary.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"ways": {}}
    found |= {"failed": {}, "name": asked.name, "arms": asked.arms, "batch": CONFIGS[asked.name][1]}
    groups = start(asked, found, until)
    order = random.Random(0)
    for number in range(asked.rounds):
        for name in order.sample(list(groups), len(groups)):
            if time.monotonic() < until:
                measure(groups, name, found, asked)
        for name in list(groups) if number == 0 else ():  # early: it is in the summary if time runs out
            if time.monotonic() < until and name not in found.get("once", {}):
                look_once(groups, name, found, asked)
        found["ratios"] = ratios(found)
        path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({"ratios": found["ratios"], "failed": found["failed"]}, indent=1))
    draw(found, asked.out / "scaling.svg")
    for group in groups.values():
        group.end()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=[*CONFIGS])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of GPUs")
    parser.add_argument("--ways", nargs="+", choices=[*TARGETS], default=[*TARGETS])
    parser.add_argument("--arms", type=int, default=8, help="of a cohort (%(default)s)")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="of one way in one round (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of a process")
    parser.add_argument("--patience", type=float, default=240.0, help="seconds for one answer (%(default)s)")
    parser.add_argument("--seconds", type=float, default=480.0, help="nothing begins later (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    return parser.parse_args()


def start(asked: argparse.Namespace, found: dict[str, Any], until: float) -> dict[str, Group]:
    """Start the ways that lack rounds, all at once; return those that are ready in time.

    One cohort with one GPU is a cohort and also cohorts side by side; it runs once.
    """
    begun = time.monotonic()
    wanted = [(f"{way} {n}", way, n) for way in asked.ways for n in asked.ranks]
    wanted = [one for one in wanted if one[1:] != ("side by side", 1) or "cohort" not in asked.ways]
    done = {name for name, rounds in found["ways"].items() if len(rounds) >= asked.rounds}
    groups = {name: Group(asked, way, n, until) for name, way, n in wanted if name not in done}
    for name in list(groups):
        attempt(groups, name, found, groups[name].answers)
    print(f"ready after {time.monotonic() - begun:.0f} s: {', '.join(groups)}", flush=True)
    return groups


def data_of(asked: argparse.Namespace) -> Path:
    """Return the folder of the dataset; its frames serve only to time what loading costs."""
    return (asked.out.parent / f"data_{'mini' if asked.name == 'mini' else 'full'}").resolve()


def attempt(groups: dict[str, Group], name: str, found: dict[str, Any], what: Any, *given: Any) -> Any:
    """Return what a way answers; a way that fails is named and left out from then on."""
    try:
        return what(*given)
    except Late as problem:
        found["failed"][name] = str(problem)
        print(f"FAILED {name}: {problem}", flush=True)
        groups.pop(name)  # its processes end with this one
        return None


def measure(groups: dict[str, Group], name: str, found: dict[str, Any], asked: argparse.Namespace) -> None:
    """Run one round of a way, and keep its numbers."""
    group, ranks = groups[name], int(name.split()[-1])
    took = attempt(groups, name, found, group.ask, "steps", asked.steps)
    if took is None:
        return
    wall_s = max(one["wall_ms"] for one in took) / 1e3
    row = {
        "step_ms": 1e3 * wall_s,
        "arm_steps_per_s": group.arms * ranks / wall_s,  # of batches: n ranks train n batches a step
        "samples_per_s": ranks * found["batch"] / wall_s,
        "host_cpu_ms": sum(one["cpu_ms"] for one in took) / ranks,
    }
    found["ways"].setdefault(name, []).append(row)
    print(name, {key: round(value, 2) for key, value in row.items()}, flush=True)


def look_once(groups: dict[str, Group], name: str, found: dict[str, Any], asked: argparse.Namespace) -> None:
    """Keep what is measured once: GPU busy, NCCL's share, memory, loading, an arm's own part."""
    kept = found.setdefault("once", {}).setdefault(name, {})
    once = {"busy": (2,), "memory": (), "resident": (), "load": (3,), "parts": ()}
    for what, given in once.items():
        if name in groups:
            kept[what] = attempt(groups, name, found, groups[name].ask, what, *given)


def ratios(found: dict[str, Any]) -> dict[str, Any]:
    """Return how many times the arm-steps per second of one GPU every way has, round by round."""
    result = {}
    for name, rounds in found["ways"].items():
        way, _, ranks = name.rpartition(" ")
        same = "cohort 1" if way == "side by side" else ""  # `start` runs only one of the two
        alone = found["ways"].get(f"{way} 1") or found["ways"].get(same)
        if alone:
            each = [
                row["arm_steps_per_s"] / one["arm_steps_per_s"]
                for row, one in zip(rounds, alone, strict=False)
            ]
            result[name] = {
                "median": statistics.median(each),
                "least": min(each),
                "most": max(each),
                "asked": TARGETS[way].get(int(ranks)),
            }
    return result


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the ratios beside the ideal line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    counts = sorted({int(name.split()[-1]) for name in found["ratios"]})
    axes.plot(counts, counts, "k--", linewidth=1, label="n times one GPU")
    for way, marker in zip(TARGETS, "os^", strict=True):
        rows = {n: found["ratios"].get(f"{way} {n}") for n in counts}
        there = [(n, row["median"]) for n, row in rows.items() if row]
        axes.plot([n for n, _ in there], [value for _, value in there], marker, label=way)
    axes.set(xlabel="GPUs", ylabel="arm-steps per second, times one GPU", xlim=0, ylim=0)
    axes.legend()
    figure.savefig(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
