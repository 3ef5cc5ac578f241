"""Trials packed on one GPU against one at a time: trials per hour, and whether accuracy stays the same.

Runs the first trials of a recipe one after another, then more of them as the probe packs them, into two
folders, and writes ``summary.json`` beside them. Example:

    python docs/studies/packing/measure.py --out runs/packing
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console

from experiments.checks import final_values
from experiments.conduct import Wishes, conduct
from experiments.folder import DONE, StudyFolder, read_json, write_json
from experiments.recipe import Recipe
from experiments.recipes import recipe
from pipeline.rows import Row, read_study


def main() -> None:
    """Measure, compare, say it in three lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="demo_gpu")
    parser.add_argument("--alone", type=int, default=2, help="trials that run one at a time")
    parser.add_argument("--packed", type=int, default=16, help="trials that run packed")
    parser.add_argument("--out", type=Path, default=Path("runs/packing"))
    asked = parser.parse_args()
    chosen, console = recipe(asked.recipe), Console(width=150)
    found = {}
    for name, trials, concurrent in (("alone", asked.alone, 1), ("packed", asked.packed, None)):
        wishes = Wishes(
            asked.out / name, concurrent, probing=concurrent is None, trials=trials, tracking=False
        )
        begun = time.time()
        conduct(chosen, wishes, console)
        found[name] = measured(asked.out / name / chosen.name, time.time() - begun)
    summary = found | compared(asked.out, chosen)
    ratio = found["packed"]["trials_per_hour"] / found["alone"]["trials_per_hour"]
    write_json(asked.out / "summary.json", summary | {"times_as_many_trials_per_hour": ratio})
    console.print(json.dumps(summary, indent=1))
    console.print(f"packed / alone: {ratio:.2f} x trials per hour")


def measured(study: Path, seconds: float) -> dict[str, Any]:
    """Return trials per hour from the first start to the last end, and what packing was used."""
    folder = StudyFolder(study)
    ended = [path for path in study.glob("trials/*") if folder.state(path.name) == DONE]
    starts = [read_json(path / "BEGUN.json")["begun"] for path in ended]
    ends = [read_json(path / "DONE.json")["ended"] for path in ended]
    span = max(ends) - min(starts)
    packing = read_json(study / "packing.json")["reason"] if (study / "packing.json").exists() else ""
    return {
        "trials": len(ended),
        "seconds": round(span, 1),
        "trials_per_hour": 3600 * len(ended) / span,
        "seconds_per_trial": round(mean(e - s for s, e in zip(starts, ends, strict=True)), 1),
        "seconds_with_checks_probe_and_report": round(seconds, 1),
        "packing": packing,
    }


def compared(out: Path, chosen: Recipe) -> dict[str, Any]:
    """Return the accuracy of the trials that ran both ways, and how much seeds change it."""
    metric, condition = (
        ("NDS", "clean") if chosen.rule is None else (chosen.rule.metric, chosen.rule.condition)
    )
    alone, packed = (
        points(read_study(out / name / chosen.name), metric, condition) for name in ("alone", "packed")
    )
    arms: dict[tuple[str, ...], list[float]] = {}
    for (arm, _), name in chosen.by_arm().items():
        if name in packed:
            arms.setdefault(arm, []).append(packed[name])
    spreads = [stdev(values) for values in arms.values() if len(values) > 1]
    both = {name: {"alone": alone[name], "packed": packed[name]} for name in alone if name in packed}
    return {
        "metric": f"{metric} ({condition}), points",
        "trials_that_ran_both_ways": both,
        "largest_difference": max((abs(v["alone"] - v["packed"]) for v in both.values()), default=None),
        "spread_between_seeds": mean(spreads) if spreads else None,
    }


def points(rows: list[Row], metric: str, condition: str) -> dict[str, float]:
    """Return trial -> metric in points."""
    return {name: 100 * value for name, value in final_values(rows, metric, condition).items()}


if __name__ == "__main__":
    main()
