"""Do trials that two ranks trained score as those of one GPU?

Pairs the trials of two study folders by plan and seed. Compares their scores on clean frames, and the samples
per second that they trained. Two ranks share the batch:

    biaswise study run r50_generated --runs-dir runs/one --init W --max-trials 32
    biaswise study run r50_generated --runs-dir runs/two --init W --max-trials 32 --gpus-per-trial 2
    PYTHONPATH=$PWD python docs/studies/two-gpus/rows.py runs/one/r50_generated runs/two/r50_generated
"""

import argparse
import math
import statistics
from pathlib import Path

from pipeline.metrics.rows import read_study, select

METRICS, RATE = ("NDS", "mAP"), "train_samples_per_s"
Scores = dict[tuple[str, int], float]
"""(plan, seed) -> a score in points, or samples/s."""


def main() -> None:
    """Print a table line for each metric."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("one", type=Path, help="study folder of trials on one GPU")
    parser.add_argument("two", type=Path, help="study folder of the same trials on two")
    asked = parser.parse_args()
    print("| points, clean | pairs | one GPU | two GPUs | two - one | noise of one trial, from pairs |")
    print("|---|---:|---:|---:|---:|---:|")
    for metric in METRICS:
        one, two = scores(asked.one, metric), scores(asked.two, metric)
        pairs = sorted(one.keys() & two.keys())
        if len(pairs) < 2:
            raise SystemExit(f"{metric}: {len(pairs)} trials are in both folders; expected two or more")
        print(line(metric, [one[pair] for pair in pairs], [two[pair] for pair in pairs]))
    one, two = (statistics.median(scores(folder, RATE).values()) for folder in (asked.one, asked.two))
    print(f"\n{RATE}, medians: {one:.3g} and {two:.3g} samples/s, {two / one:.2f} times")


def scores(folder: Path, metric: str) -> Scores:
    """Return a score of clean frames, or the rate of training, of every trial of a study."""
    rate = metric == RATE
    rows = select(read_study(folder), metric=metric, condition="" if rate else "clean", scene="", draw=None)
    return {(row.plan, row.seed): row.value * (1 if rate else 100) for row in rows}


def line(metric: str, one: list[float], two: list[float]) -> str:
    """Return a line of the table; the noise of a difference is that of two trials."""
    differences = [b - a for a, b in zip(one, two, strict=True)]
    spread = statistics.stdev(differences)
    error = spread / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    return (
        f"| {metric} | {len(one)} | {statistics.fmean(one):.2f} | {statistics.fmean(two):.2f} "
        f"| {mean:+.2f} ± {error:.2f} | {spread / math.sqrt(2):.2f} |"
    )


if __name__ == "__main__":
    main()
