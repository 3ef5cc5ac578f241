"""One training step on one GPU, before and after a change: time, GPU time by part, host time, losses.

Both versions keep their models in memory and take turns, so that a clock that drifts hits both alike. What
is not timed (losses) all do at the same time. Example:

    PYTHONPATH=$PWD python docs/studies/step/measure.py --before ../at-071c49a --out runs/step

``--before`` is a checkout of the version to compare with. Results that ``--out`` holds are not measured
again.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from versions import Worker

CONFIGS = {
    "r50": ("experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py", 4),
    "vov": ("experiments/configs/cmt_aqr_voxel0075_vov_1600x640_cbgs.py", 2),
}
ROUNDS, STEPS, CALLS = 5, 8, 12
THREADS = 2  # torch threads of a trial (``TrialSettings.torch_threads``)


Numbers = dict[str, dict[str, list[Any]]]
"""Version -> name -> what each round found."""


def start(trees: dict[str, Path], names: list[str], plan: str) -> dict[str, dict[str, Worker]]:
    """Start a worker for every model and version; all build their models at the same time."""
    script, workers = Path(__file__).with_name("worker.py"), {}
    for name in names:
        config, batch = CONFIGS[name]
        arguments = [config, plan, str(batch)]
        workers[name] = {v: Worker(tree, script, arguments, THREADS) for v, tree in trees.items()}
    for one in workers.values():
        for worker in one.values():
            worker.answer()
    return workers


def ask_all(workers: dict[str, dict[str, Worker]], request: str) -> dict[str, Numbers]:
    """Let all workers do at the same time what is not timed; return the answers by model."""
    for one in workers.values():
        for worker in one.values():
            worker.send(request)
    return {
        name: {version: {k: [v] for k, v in worker.answer().items()} for version, worker in one.items()}
        for name, one in workers.items()
    }


def take_turns(workers: dict[str, Worker], found: Numbers) -> None:
    """Time both versions of one model in turn, and add what is found."""
    requests = [f"steps {STEPS}"] * ROUNDS + [f"stream {STEPS}"] * ROUNDS + ["busy", "trunk", f"own {CALLS}"]
    for request in [*requests, *[f"detect {CALLS}"] * ROUNDS]:
        for version, worker in workers.items():
            worker.send(request)
            for key, value in worker.answer().items():
                found[version].setdefault(key, []).append(value)


def _summary(values: list[Any]) -> Any:
    """Return the median of the rounds and their extremes; a list of losses as it is."""
    if isinstance(values[0], list):
        return values[0]
    numbers = [round(x, 3) for x in (statistics.median(values), min(values), max(values))]
    return numbers if len(values) > 1 else numbers[0]


def table(results: dict[str, Any]) -> str:
    """Return the numbers as lines of a Markdown table."""
    lines = []
    for name, versions in results.items():
        for key in versions["after"]:
            if isinstance(versions["after"][key], list) and len(versions["after"][key]) > 3:
                continue
            shown = [str(versions[version].get(key, "")) for version in ("before", "after")]
            lines.append(f"| {name} | {key} | {' | '.join(shown)} |")
        if "losses" in versions["after"]:
            for version in ("before", "after"):
                curve = versions[version]["losses"]
                ends = [f"{statistics.mean(part):.2f}" for part in (curve[:20], curve[-20:])]
                lines.append(f"| {name} | losses, first and last 20 of {len(curve)} | {version} | {ends} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--after", type=Path, default=Path.cwd())
    parser.add_argument("--out", type=Path, default=Path("runs/step"))
    parser.add_argument("--plan", default="rects")
    parser.add_argument("--losses", type=int, default=200, help="training steps whose losses are compared")
    parser.add_argument("--only", nargs="*", default=list(CONFIGS))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    trees = {"before": given.before.resolve(), "after": given.after.resolve()}
    missing = [name for name in given.only if not (given.out / f"{name}.json").exists()]
    workers = start(trees, missing, given.plan)
    found = ask_all(workers, f"losses {given.losses}")
    for name, one in workers.items():
        take_turns(one, found[name])
        numbers = {v: {k: _summary(x) for k, x in of.items()} for v, of in found[name].items()}
        (given.out / f"{name}.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
        print(table({name: numbers}), flush=True)
        for worker in one.values():
            worker.end()
    print(table({n: json.loads((given.out / f"{n}.json").read_text(encoding="utf-8")) for n in given.only}))


if __name__ == "__main__":
    main()
