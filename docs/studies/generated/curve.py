"""The learning curve of a pretraining, as a table and a picture."""

import csv
import json
from pathlib import Path
from typing import Any

LOSSES = ("loss_bbox", "dn_loss_bbox", "token_loss_bbox")
"""Box losses of the last layer's queries, of its denoising queries, and of BEV cells."""

Curve = dict[int, dict[str, float]]
"""Step -> metric -> value."""


def learning_curve(folder: Path) -> Curve:
    """Return ``mAP`` on clean frames and ``LOSSES`` of the newest trial of a study, in the order of steps."""
    newest = max(folder.glob("trials/*/rows.jsonl"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        return {}
    found: Curve = {}
    for row in (json.loads(line) for line in newest.read_text().splitlines() if line.endswith("}")):
        if row["metric"] in LOSSES or _is_score(row):
            found.setdefault(row["step"], {})[row["metric"]] = row["value"]
    return dict(sorted(found.items()))


def scores(found: Curve) -> list[tuple[int, float]]:
    """Return (step, mAP) where it was measured."""
    return [(step, values["mAP"]) for step, values in found.items() if "mAP" in values]


def draw(found: Curve, out: Path) -> None:
    """Write ``learning_curve.csv`` and ``learning_curve.svg``."""
    from matplotlib.figure import Figure

    with (out / "learning_curve.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ("step", "mAP", *LOSSES))
        table.writeheader()
        table.writerows({"step": step} | values for step, values in found.items())
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(ncols=2)
    left.plot(*zip(*scores(found), strict=True), "o-")
    left.set(xlabel="steps", ylabel="mAP, clean, 40 frames", xlim=0, ylim=0)
    for name in LOSSES:
        points = [(step, values[name]) for step, values in found.items() if name in values]
        if points:
            right.plot(*zip(*points, strict=True), label=name)
    right.set(xlabel="steps", ylabel="loss", xlim=0, ylim=0)
    right.legend()
    figure.savefig(out / "learning_curve.svg")


def _is_score(row: dict[str, Any]) -> bool:
    return (row["metric"], row["condition"], row["draw"]) == ("mAP", "clean", None)
