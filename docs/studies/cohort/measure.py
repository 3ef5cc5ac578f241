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
import random
import statistics
from pathlib import Path
from typing import Any

from worker import CONFIGS, Worker, make_data


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
    make_data(asked.name, data)
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
    return {**found.pop("parts"), **found.pop("busy"), **found}


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
    """Draw the wall time of n arm-steps beside trunk + n x own, as the largest cohort has them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for kind, marker in {"cohort": "o", "in turn": "s", "packed": "^"}.items():
        rows = {int(w.split()[-1]): m for w, m in summary["medians"].items() if w.startswith(kind)}
        counts = sorted(rows)
        axes.plot(counts, [rows[n]["wall_ms"] for n in counts], marker, label=kind, markersize=7)
    largest = max(summary["cohorts"])
    parts = summary["cohorts"][largest]
    counts = sorted({int(way.split()[-1]) for way in summary["medians"]})
    line = [parts["step_trunk_ms"] + n * parts["step_own_ms"] for n in counts]
    axes.plot(counts, line, "k--", linewidth=1, label=f"trunk + n x own, of the cohort of {largest}")
    axes.set(xlabel="arms", ylabel="wall time of a step of all arms, ms", xlim=0, ylim=0)
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
