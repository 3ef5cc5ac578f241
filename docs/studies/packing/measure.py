"""Trials packed on one GPU against one at a time: trials per hour, and whether accuracy stays the same.

Probes, runs trials of a recipe in processes of their own as the probe says, then the first of them again one
after another, on the same machine with the same code; with ``--arms``, all of them in cohorts before that.
``summary.json`` and ``trials.csv`` are written after each way and when the run is cut off (SIGINT); started
again with the same folder, it goes on. ``--timeline`` writes down when each process of a way starts and when
it first imports or opens what takes long (``timeline/sitecustomize.py``). Examples:

    python docs/studies/packing/measure.py --out runs/packing
    python docs/studies/packing/measure.py --concurrent 16 --arms 4 2 8 --alone 0 --timeline  # no probe

The numbers in README.md were made at the commit that it names. The script runs on today's code.
"""

import argparse
import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from trials import ended_trials, hourly, points_of, run_first

from experiments.cli.study.chosen import overridden_study
from experiments.packing.policy import PackingRequest
from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.recipe import Recipe
from experiments.storage.study_folder import StudyFolder, read_json, write_json
from experiments.study.preflight.checks import check_data
from experiments.study.preflight.datasets import make_datasets
from experiments.study.preflight.models import check_models
from pipeline.metrics.rows import read_study
from pipeline.ray_train.local_cluster import prepare_ray

COHORTS, PACKED, ALONE = "cohorts_of_", "packed", "alone"
"""Folders of the ways, in the order in which they run: what is slow the first time (bytecode, kernels, page
cache) counts against the way that is to be the faster one. The number of arms follows the first."""


def main() -> None:
    """Measure, compare, say it in a line."""
    prepare_ray()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipe", default="demo_gpu")
    parser.add_argument("--alone", type=int, default=2, help="trials that run one at a time")
    parser.add_argument("--packed", type=int, default=16, help="trials that run packed")
    parser.add_argument("--concurrent", type=int, help="of them at once (as the probe says)")
    parser.add_argument("--arms", type=int, nargs="+", default=[], help="arms of a cohort, one after another")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="as for `study run`")
    parser.add_argument("--timeline", action="store_true", help="a file timeline.log for each way")
    parser.add_argument("--out", type=Path, default=Path("runs/packing"))
    asked = parser.parse_args()
    words = ["--set", *asked.set] if asked.set else []
    chosen, console = overridden_study(asked.recipe, words), Console(width=150)
    make_datasets(chosen.datasets, console)
    check_data(chosen)
    check_models(chosen, console)
    requests = {f"{COHORTS}{arms}": PackingRequest(-(-asked.packed // arms), arms) for arms in asked.arms}
    requests[PACKED] = PackingRequest(asked.concurrent, 1, probing=asked.concurrent is None)
    requests[ALONE] = PackingRequest(1, 1)
    try:
        for way, request in requests.items():
            trials = asked.alone if way == ALONE else asked.packed
            if trials:
                folder = StudyFolder((asked.out / way).resolve())
                with _timeline(folder.path / "timeline.log" if asked.timeline else None):
                    run_first(chosen, folder, request, trials, console)
                _sum_up(asked.out, chosen)
    finally:
        console.print(json.dumps(_sum_up(asked.out, chosen), indent=1), highlight=False)


@contextmanager
def _timeline(log: Path | None) -> Iterator[None]:
    """Let processes that start within the context write to a file what ``timeline/sitecustomize.py`` sees."""
    before = os.environ.get("PYTHONPATH", "")
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        os.environ["TIMELINE_LOG"] = str(log)
        os.environ["PYTHONPATH"] = f"{Path(__file__).parent / 'timeline'}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before


def _sum_up(out: Path, chosen: Recipe) -> dict[str, Any]:
    """Write down what both folders hold so far, and return it."""
    rule = chosen.rule or DecisionRule()
    ways = [path.name for path in sorted(out.iterdir()) if path.is_dir()] if out.exists() else []
    table = [line for way in ways for line in ended_trials(out / way, way, rule)]
    if not table:
        return {}
    with (out / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    rates = {way: hourly([line for line in table if line["way"] == way]) for way in ways}
    summary = {
        "times_as_many_trials_per_hour": _times(rates),
        **rates,
        **_compared(out, ways, chosen, rule),
    }
    if (out / PACKED / "concurrency.json").exists():
        summary["packing"] = read_json(out / PACKED / "concurrency.json")
    write_json(out / "summary.json", summary)
    return summary


def _times(rates: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return way -> times the trials per hour of trials in processes of their own, of those that have run."""
    packed = rates.get(PACKED, {}).get("trials_per_hour", math.nan)
    return {way: rate["trials_per_hour"] / packed for way, rate in rates.items() if rate}


def _compared(out: Path, ways: Sequence[str], chosen: Recipe, rule: DecisionRule) -> dict[str, Any]:
    """Return the accuracy of the trials that ran packed and another way, and how much seeds change it."""
    points = {way: points_of(read_study(out / way), rule) for way in ways}
    packed = points.get(PACKED, {})
    arms: dict[tuple[str, ...], list[float]] = {}
    for (arm, _), name in chosen.by_arm().items():
        if name in packed:
            arms.setdefault(arm, []).append(packed[name])
    spreads = [stdev(values) for values in arms.values() if len(values) > 1]
    both = {
        name: {way: found[name] for way, found in points.items() if name in found}
        for name in packed
        if any(name in found for way, found in points.items() if way != PACKED)
    }
    ranges = [max(each.values()) - min(each.values()) for each in both.values()]
    return {
        "metric": f"{rule.metric} ({rule.condition}), points",
        "trials_that_ran_several_ways": both,
        "largest_difference": max(ranges, default=None),
        "spread_between_seeds": mean(spreads) if spreads else None,
    }


if __name__ == "__main__":
    main()
