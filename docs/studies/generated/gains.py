"""The gains of several studies beside each other: does another training of the detector change the answer?

    PYTHONPATH=$PWD python docs/studies/generated/gains.py first second

Each name is a folder here with the ``verdicts.csv`` of a report. Writes ``gains.svg``.
"""

import argparse
import csv
from pathlib import Path

HERE = Path(__file__).parent
COLUMNS = ("gain", "gain_low", "gain_high")
APART = 0.18
"""Distance of the marks of two studies, in layers."""


def main() -> None:
    """Draw all studies."""
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="+")
    asked = parser.parse_args()
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="black", linewidth=0.8)
    for number, name in enumerate(asked.studies):
        with (HERE / name / "verdicts.csv").open(encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        places = [i + APART * (number - (len(asked.studies) - 1) / 2) for i in range(len(lines))]
        gains, lows, highs = ([float(line[key]) for line in lines] for key in COLUMNS)
        below = [gain - low for gain, low in zip(gains, lows, strict=True)]
        above = [high - gain for gain, high in zip(gains, highs, strict=True)]
        axes.errorbar(places, gains, (below, above), fmt="o", capsize=3, label=f"{name} training")
    prices = [float(line["price"]) for line in lines]
    axes.plot(range(len(prices)), prices, "_", color="black", markersize=24, label=f"price ({name} study)")
    axes.set_xticks(range(len(lines)), [line["site"].split(".")[1] for line in lines])
    axes.set(xlabel="decoder layer", ylabel="gain of the window, points of NDS")
    axes.legend()
    figure.savefig(HERE / "gains.svg")


if __name__ == "__main__":
    main()
