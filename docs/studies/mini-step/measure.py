"""The mini on one CPU core, before and after a change: a training step, a detection, a trial of the demo.

Both versions keep their models in processes of one thread that take turns, round by round, so that a clock
that drifts hits both alike. Before that, whole trials run, two processes at a time, each on a core. Example:

    git worktree add --detach ../at-da22db2 da22db2
    PYTHONPATH=$PWD python docs/studies/mini-step/measure.py --before ../at-da22db2 --out runs/mini-step

Makes the demo's dataset first (``--data``), if it is not there; that is not timed.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.data.synthetic import generate

sys.path.append(str(Path(__file__).resolve().parents[1] / "step"))
from versions import Worker  # the step study's

SEED = 7  # of the demo's dataset
WORDS = {"none": "no bias", "one": "window at layer 2", "all": "window at all three layers"}
KINDS = {
    "step": "training step, batch 2",
    "detection": "detection, batch norms folded",
    "evaluation": "detection in a trial",
}
TRIAL = {"cpu_s": "a whole trial, CPU seconds", "peak_gib": "..., GiB", "NDS": "..., NDS", "mAP": "..., mAP"}
COHORT = {"cpu_s": "a trial in a cohort of four, CPU seconds", "peak_gib": "..., GiB"}
CPU, WALL = 0, 1
Rounds = list[dict[str, dict[str, tuple[float, float]]]]
"""Round -> plan -> what was timed -> milliseconds of CPU, of wall clock."""


def main() -> None:
    """Measure both versions, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="checkout of the version to compare with")
    parser.add_argument("--after", type=Path, default=Path.cwd())
    parser.add_argument("--data", type=Path, default=Path("data/mini"))
    parser.add_argument("--seconds", type=float, default=75.0, help="of the rounds")
    parser.add_argument("--steps", type=int, default=40, help="of the trials; 0: no trials")
    parser.add_argument("--out", type=Path, default=Path("runs/mini-step"))
    asked = parser.parse_args()
    out, data, script = asked.out.resolve(), asked.data.resolve(), Path(__file__).with_name("worker.py")
    out.mkdir(parents=True)
    generate(data, SEED)
    trees = {"before": asked.before.resolve(), "after": asked.after.resolve()}

    def start(name: str) -> Worker:
        return Worker(trees[name], script, [name, str(data), str(out / name)], threads=1)

    begun = time.monotonic()
    found: dict[str, Any] = {}
    if asked.steps:
        found["trials"] = whole_trials(start, asked.steps)
    workers = {name: start(name) for name in trees}
    for worker in workers.values():
        ask(worker, "build")
    found["losses"] = {name: worker.answer() for name, worker in workers.items()}
    found["rounds"] = take_turns(workers, asked.seconds)
    for worker in workers.values():
        worker.end()
    found |= {"load": os.getloadavg(), "seconds": time.monotonic() - begun}
    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


def ask(worker: Worker, request: str) -> None:
    """Send the first request to a worker as soon as it is ready."""
    worker.answer()
    worker.send(request)


def whole_trials(start: Callable[[str], Worker], steps: int) -> dict[str, Any]:
    """Run a trial of each version one after the other, and a cohort beside them; return what each took."""
    cohort = start("after")
    ask(cohort, f"cohort {steps}")
    found = {}
    for name in ("before", "after"):
        worker = start(name)
        ask(worker, f"trial {steps}")
        found[name] = worker.answer()
        worker.end()
    found["cohort"] = cohort.answer()
    cohort.end()
    return found


def take_turns(workers: dict[str, Worker], seconds: float) -> dict[str, Rounds]:
    """Time all versions in turn until the time is over; the first of a round is the last of the next."""
    found: dict[str, Rounds] = {name: [] for name in workers}
    until, index, order = time.monotonic() + seconds, 0, list(workers)
    while index == 0 or time.monotonic() < until:
        for name in order:
            workers[name].send(f"round {index}")
            found[name].append(workers[name].answer())
        index, order = index + 1, order[::-1]
    return found


def table(found: dict[str, Any]) -> str:
    """Return the medians as a Markdown table."""
    rounds = found["rounds"]
    lines = [
        f"{len(rounds['after'])} rounds; {found['seconds']:.0f} s in all; load {found['load'][0]:.1f}",
        "",
    ]
    lines += ["| | before | after | ratio | wall before | wall after |", "|---|---:|---:|---:|---:|---:|"]
    for kind, words in KINDS.items():
        for plan, bias in WORDS.items():
            cpu, wall = (
                {name: [one[plan][kind][clock] for one in each] for name, each in rounds.items()}
                for clock in (CPU, WALL)
            )
            ratio = statistics.median(cpu["after"]) / statistics.median(cpu["before"])
            shown = [with_extremes(cpu["before"]), with_extremes(cpu["after"]), f"{ratio:.2f}"]
            shown += [f"{statistics.median(wall[name]):.0f}" for name in ("before", "after")]
            lines.append(f"| {words}, {bias}, ms | {' | '.join(shown)} |")
    for kind in ("step", "detection"):
        prices = {name: prices_of(each, kind) for name, each in rounds.items()}
        for price, words in {"fixed": "any bias at all", "own": "... each layer"}.items():
            shown = [with_interval(prices[name][price]) for name in ("before", "after")]
            lines.append(f"| {words}, % of a {kind} without | {' | '.join(shown)} | | | |")
    lines += [f"| loss, {WORDS[plan]} | {_both(found['losses'], plan, '.4f')} | | | |" for plan in WORDS]
    trials = found.get("trials", {})
    for key, words in TRIAL.items() if trials else ():
        before, after = trials["before"][key], trials["after"][key]
        lines.append(f"| {words} | {before:.2f} | {after:.2f} | {after / before:.2f} | | |")
    for key in ("cpu_s", "peak_gib") if trials else ():
        before, after = trials["before"][key], trials["cohort"][key]
        lines.append(f"| {COHORT[key]} | {before:.2f} | {after:.2f} | {after / before:.2f} | | |")
    return "\n".join(lines)


def prices_of(rounds: Rounds, kind: str) -> dict[str, list[float]]:
    """Return what a bias costs in each round, per cent of CPU time without: once, and for each layer.

    ``one`` is no bias + fixed + own, ``all`` is no bias + fixed + 3 own.
    """
    found: dict[str, list[float]] = {"fixed": [], "own": []}
    for times in rounds:
        none, one, every = (times[plan][kind][CPU] for plan in ("none", "one", "all"))
        own = (every - one) / 2
        found["fixed"].append(100 * (one - own - none) / none)
        found["own"].append(100 * own / none)
    return found


def with_extremes(values: list[float]) -> str:
    """Return the median, and the extremes in brackets."""
    return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


def with_interval(values: list[float]) -> str:
    """Return the median and its 95 % interval, from the ranks that a binomial count of signs has."""
    ordered, count = sorted(values), len(values)
    rank = max(0, int(count / 2 - 0.98 * count**0.5))
    return f"{statistics.median(ordered):+.1f} [{ordered[rank]:+.1f}, {ordered[count - 1 - rank]:+.1f}]"


def _both(found: dict[str, dict[str, float]], key: str, digits: str) -> str:
    return " | ".join(f"{found[name][key]:{digits}}" for name in ("before", "after"))


if __name__ == "__main__":
    main()
