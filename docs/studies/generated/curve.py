"""The learning curves of pretrainings, as tables and a picture.

    PYTHONPATH=$PWD python docs/studies/generated/curve.py --out docs/studies/generated \\
        first second third=runs/pretrain_r50

A name without a folder stands for the table that an earlier run has left.
"""

import argparse
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOSSES = ("loss_bbox", "dn_loss_bbox", "token_loss_bbox")
"""Box losses of the last layer's queries, of its denoising queries, and of BEV cells."""

READ = "dn_loss_bbox"
"""The loss that falls when the decoder begins to read its keys."""

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


def read(folder: Path) -> Curve:
    """Return what ``write`` has written."""
    with (folder / "learning_curve.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return {int(line.pop("step")): {k: float(v) for k, v in line.items() if v} for line in lines}


def scores(found: Curve) -> list[tuple[int, float]]:
    """Return (step, mAP) where it was measured."""
    return [(step, values["mAP"]) for step, values in found.items() if "mAP" in values]


def write(found: Curve, folder: Path) -> None:
    """Write ``learning_curve.csv``."""
    with (folder / "learning_curve.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ("step", "mAP", *LOSSES))
        table.writeheader()
        table.writerows({"step": step} | values for step, values in found.items())


def draw(curves: Mapping[str, Curve], folder: Path) -> None:
    """Write ``learning_curve.svg``: mAP and the denoising queries' box loss, a line for each training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(ncols=2)
    for name, found in curves.items():
        left.plot(*zip(*scores(found), strict=True), "o-", label=name)
        points = [(step, values[READ]) for step, values in found.items() if READ in values]
        right.plot(*zip(*points, strict=True), label=name)
    left.set(xlabel="steps", ylabel="mAP, clean, 40 frames", xlim=0, ylim=0)
    right.set(xlabel="steps", ylabel=READ, xlim=0)
    right.legend()
    figure.savefig(folder / "learning_curve.svg")


def _is_score(row: dict[str, Any]) -> bool:
    return (row["metric"], row["condition"], row["draw"]) == ("mAP", "clean", None)


def main() -> None:
    """Write a table for each training, in a folder of its name, and one picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trainings", nargs="+", metavar="NAME[=FOLDER]")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    curves = {}
    for name, _, folder in (word.partition("=") for word in asked.trainings):
        place = asked.out / name
        if folder:
            place.mkdir(parents=True, exist_ok=True)
            write(learning_curve(Path(folder)), place)
        curves[name] = read(place)
    draw(curves, asked.out)


if __name__ == "__main__":
    main()
