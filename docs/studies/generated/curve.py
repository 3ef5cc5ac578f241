"""The learning curve of a pretraining, as a table and a picture."""

import csv
import json
from pathlib import Path


def learning_curve(folder: Path) -> list[tuple[int, float]]:
    """Return (step, mAP on clean frames) of the newest trial of a study, in the order of steps."""
    newest = max(folder.glob("trials/*/rows.jsonl"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        return []
    rows = [json.loads(line) for line in newest.read_text().splitlines() if line.endswith("}")]
    found = {
        row["step"]: row["value"]
        for row in rows
        if (row["metric"], row["condition"], row["draw"]) == ("mAP", "clean", None)
    }
    return sorted(found.items())


def draw(found: list[tuple[int, float]], out: Path) -> None:
    """Write ``learning_curve.csv`` and ``learning_curve.svg``."""
    from matplotlib.figure import Figure

    with (out / "learning_curve.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("step", "mAP"), *found])
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*found, strict=True), "o-")
    axes.set(xlabel="steps", ylabel="mAP, clean, 40 frames", xlim=0, ylim=0)
    figure.savefig(out / "learning_curve.svg")
