"""The plots of a calibration, as SVG files."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.calibration.designs import LEAN, SMALL
from experiments.calibration.error_rates import with_interval
from experiments.calibration.findings import Findings

INK, ACCENT, SECOND = "#333333", "#0b6e99", "#b3541e"


def draw_rates(findings: Findings, path: Path) -> None:
    """Draw per planted truth and design: any false claim, what is found, single intervals that hold."""
    names = list(dict.fromkeys(scenario.name for scenario, _ in findings.scenarios))
    figure = Figure(figsize=(11, 0.3 * len(names) + 1.4), layout="constrained")
    claims, found, held = figure.subplots(1, 3, sharey=True)
    for scenario, tally in findings.scenarios:
        of_large = len(scenario.study.sites) > len(SMALL.sites)
        y, colour = names.index(scenario.name) + (0.18 if of_large else -0.18), SECOND if of_large else ACCENT
        _bar(claims, y, tally.rate("any false claim"), colour)
        if scenario.has_effects:
            _bar(found, y, tally.rate("found"), colour)
        if tally.intervals:
            _bar(held, y, with_interval(tally.covered, tally.intervals), colour)
    claims.axvline(5, color=INK, linewidth=0.8)
    claims.axvline(7, color=INK, linewidth=0.8, linestyle=":")
    held.axvspan(93, 97, color=INK, alpha=0.1, linewidth=0)
    claims.set(xlabel="studies with any false claim, %", xlim=(0, 12))
    found.set(xlabel="studies that find all that is planted, %", xlim=(0, 100))
    held.set(xlabel="single 95 % intervals that hold the truth, %", xlim=(88, 100))
    claims.set_yticks(range(len(names)), names)
    claims.invert_yaxis()
    for sites, colour in ((3, ACCENT), (6, SECOND)):
        claims.plot([], [], "o-", color=colour, markersize=5, label=f"{sites} layers")
    claims.legend(frameon=False, loc="lower right")
    _finish(figure, path)


def draw_sizes(findings: Findings, path: Path) -> None:
    """Draw agreement with the full grid and undecided verdicts over the size of the effect."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    seeds = sorted({count for _, count, _ in findings.sizes})
    for index, count in enumerate(seeds):
        curve = [(effect, tally) for effect, found, tally in findings.sizes if found == count]
        effects = [effect for effect, _ in curve]
        look = {
            "color": ACCENT,
            "alpha": 0.35 + 0.65 * index / max(len(seeds) - 1, 1),
            "marker": "o",
            "ms": 4,
        }
        label = f"{count * len(LEAN.arms)} trials"
        left.plot(effects, [100 * tally.rate("agrees")[0] for _, tally in curve], label=label, **look)
        right.plot(
            effects, [100 * tally.undecided / tally.verdicts for _, tally in curve], label=label, **look
        )
    left.axhline(95, color=SECOND, linewidth=1)
    right.axhline(50, color=INK, linewidth=0.8, linestyle=":")
    left.set(xlabel="planted effect, noises of one run", ylabel="same PAYS layers as the full grid, %")
    right.set(xlabel="planted effect, noises of one run", ylabel="undecided verdicts, %", ylim=(0, 100))
    left.set_ylim(0, 100)
    right.annotate("share without effect", (0.02, 45), xycoords=("axes fraction", "data"), fontsize=8)
    left.legend(frameon=False)
    _finish(figure, path)


def _bar(axes: Axes, y: float, rate: tuple[float, float, float], colour: str) -> None:
    axes.plot([100 * rate[1], 100 * rate[2]], [y, y], color=colour, linewidth=1.4)
    axes.plot(100 * rate[0], y, "o", color=colour, markersize=5)


def _finish(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.grid(axis="x", linewidth=0.4, color="#cccccc")
        axes.spines[["top", "right"]].set_visible(False)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):  # text stays text: small
        figure.savefig(path, metadata={"Date": None})
