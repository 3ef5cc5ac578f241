"""Figures of a report: SVG that takes its colours and its font from the page around it.

Matplotlib draws with stand-in colours, which are then replaced by CSS variables: one picture is legible on
light and on dark. Text stays text (small, searchable). The size is that of a phone's column, so that
nothing there is smaller than it should be; wide screens enlarge it.
"""

import io
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.arms import typical_values
from experiments.decide import COSTS, PAYS, UNDECIDED, Evidence
from experiments.rule import Rule
from experiments.sheets import arm_label, lenient_values, varied_sites
from pipeline.plan import Plan
from pipeline.rows import Row, select

WIDTH = 4.9  # inches of 72 units: 353 units, the text column of a phone that is 375 px wide
CSS_COLOURS = {
    "#000001": "var(--ink)",
    "#000002": "var(--faint)",
    "#000003": "var(--accent)",
    "#000004": "var(--pays)",
    "#000005": "var(--costs)",
    "#000006": "var(--undecided)",
    "#000007": "var(--page)",
}
INK, FAINT, ACCENT, *_, PAGE = CSS_COLOURS
VERDICT_COLOURS = {PAYS: "#000004", COSTS: "#000005", UNDECIDED: "#000006"}
STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.6,
    "grid.color": FAINT,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def accuracy_speed(rows: Sequence[Row], rule: Rule) -> str:
    """Draw accuracy against throughput: a dot per trial, a labelled disc per arm, the price as a line.

    Returns:
        SVG, or nothing if no trial has both numbers.
    """
    speeds = typical_values(rows, "train_samples_per_s")
    values = lenient_values(rows, rule.metric, rule.condition)
    sites = rule.sites or varied_sites(rows)
    arms: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for trial, plan in sorted({(row.trial, row.plan) for row in rows}):
        point = speeds.get(trial, math.nan), 100 * values.get(trial, math.nan)
        if all(map(math.isfinite, point)):
            arms[arm_label(plan, sites, rule)].append(point)
    if not arms:
        return ""
    with _canvas("speed", 3.6) as (figure, axes):
        means = {arm: _mean(points) for arm, points in arms.items()}
        for points in arms.values():
            x, y = _mean(points)
            xs, ys = zip(*points, strict=True)
            axes.scatter(xs, ys, s=9, color=INK, alpha=0.45, linewidths=0)
            for one in points:
                axes.plot([x, one[0]], [y, one[1]], color=INK, alpha=0.25, linewidth=0.8)
        for arm, mean in means.items():
            plain = arm == rule.baseline
            axes.scatter(
                *mean, s=46, zorder=3, color=PAGE if plain else ACCENT, edgecolors=INK if plain else ACCENT
            )
        if rule.baseline in means:
            _price_line(axes, means[rule.baseline], rule)
        _label_points(figure, axes, means)
        axes.set_xlabel("training, samples per second")
        axes.set_ylabel(f"{rule.metric}, points ({rule.condition})")
        return _svg(figure, "speed")


def forest(evidence: Evidence) -> str:
    """Draw the gain per layer with its interval: the judged condition thick, the others thin below it."""
    groups = defaultdict(list)
    for effect in evidence.effects:
        groups[effect.site].append(effect)
    verdicts = {verdict.site: verdict for verdict in evidence.verdicts}
    lines = sum(len(effects) + 1 for effects in groups.values())  # a head line per layer
    with _canvas("forest", 0.9 + 0.235 * lines) as (figure, axes):
        axes.axvline(0, color=INK, linewidth=0.9)
        ticks: dict[float, str] = {}
        y = 0.0
        for site, effects in groups.items():
            verdict = verdicts[site]
            axes.text(
                0.0,
                y,
                f"{site}: {verdict.verdict}",
                transform=axes.get_yaxis_transform(),
                weight="bold",
                va="center",
            )
            for effect in effects:
                y -= 1
                judged = effect.condition == evidence.rule.condition
                colour = VERDICT_COLOURS[verdict.verdict] if judged else INK
                axes.plot([effect.low, effect.high], [y, y], color=colour, linewidth=3.2 if judged else 1.1)
                axes.plot(effect.effect, y, "o", color=colour, markersize=7 if judged else 4)
                if judged:
                    axes.plot([verdict.price] * 2, [y - 0.42, y + 0.42], color=INK, linewidth=1.6)
                ticks[y] = effect.condition
            y -= 1.25
        axes.set_yticks(list(ticks), list(ticks.values()))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(y + 0.6, 0.7)
        axes.set_xlabel(f"gain, points of {evidence.rule.metric}")
        return _svg(figure, "forest")


def learned_scale(rows: Sequence[Row], rule: Rule) -> str:
    """Draw ``bias_scale`` as it is learned: thin a trial, bold the mean of trials with equally many layers.

    Returns:
        SVG, or nothing if no trial with the treatment recorded it.
    """
    sites = rule.sites or varied_sites(rows)
    trials: dict[int, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in select(rows, metric="bias_scale"):
        plan = dict(Plan.parse(row.plan).choices)
        layers = sum(plan[site].bias == rule.treatment for site in sites if site in plan)
        if layers and math.isfinite(row.value):
            trials[layers][row.trial][row.step] = row.value
    if not trials:
        return ""
    with _canvas("scale", 2.9) as (figure, axes):
        for layers, curves in sorted(trials.items()):
            for curve in curves.values():
                axes.plot(*zip(*sorted(curve.items()), strict=True), color=INK, alpha=0.25, linewidth=0.8)
            shared = sorted(set.intersection(*(set(curve) for curve in curves.values())))
            if shared:
                means = [sum(curve[step] for curve in curves.values()) / len(curves) for step in shared]
                axes.plot(shared, means, color=ACCENT, linewidth=2)
                name = f" {layers} layer{'s' if layers > 1 else ''}"
                axes.annotate(name, (shared[-1], means[-1]), color=ACCENT, va="center", annotation_clip=False)
        axes.margins(x=0)
        axes.set_xlabel("optimiser steps")
        axes.set_ylabel("bias_scale")
        return _svg(figure, "scale")


@contextmanager
def _canvas(salt: str, height: float) -> Iterator[tuple[Figure, Axes]]:
    with mpl.rc_context({**STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.add_subplot()


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _price_line(axes: Axes, baseline: tuple[float, float], rule: Rule) -> None:
    """Draw the accuracy that each speed must reach to be worth its price, from the baseline on."""
    axes.margins(x=0.14, y=0.12)
    axes.autoscale_view()
    low, high = axes.get_xlim()
    bounds = axes.get_ylim()
    speeds = [low + (high - low) * i / 20 for i in range(21)]
    worth = [
        baseline[1] + 100 * rule.price_points_per_percent * (baseline[0] / speed - 1) for speed in speeds
    ]
    axes.plot(speeds, worth, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlim(low, high)
    axes.set_ylim(bounds)


def _label_points(figure: Figure, axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Write each name where it covers the fewest points and names: eight places around a point are tried."""
    figure.canvas.draw()
    centres = {name: axes.transData.transform(point) for name, point in points.items()}
    boxes: list[tuple[float, float, float, float]] = [
        (x - 6, y - 6, x + 6, y + 6) for x, y in centres.values()
    ]
    frame = axes.get_window_extent()
    for name, (x, y) in centres.items():
        width, height = (
            5.6 * len(name) * figure.dpi / 72,
            12 * figure.dpi / 72,
        )  # units of a character at 10.5
        places = [
            (x + dx * (9 + width / 2), y + dy * (8 + height / 2))
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
        ]
        candidates = [(a - width / 2, b - height / 2, a + width / 2, b + height / 2) for a, b in places]
        costs = [
            sum(_overlap(box, other) for other in boxes) + 1e3 * (not _within(box, frame.extents))
            for box in candidates
        ]
        best = costs.index(min(costs))
        boxes.append(candidates[best])
        x_text, y_text = axes.transData.inverted().transform(places[best])
        axes.text(x_text, y_text, name, ha="center", va="center", fontsize=10)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _within(box: tuple[float, ...], frame: Sequence[float]) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _two_decimals(tag: re.Match[str]) -> str:
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag.group())


def _svg(figure: Figure, name: str) -> str:
    """Render as an ``<svg>`` element for a page: its colours, its font, ids of its own, two decimals."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, variable in CSS_COLOURS.items():
        text = text.replace(stand_in, variable)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r" xmlns(:xlink)?=\"[^\"]*\"", "", text)
    text = re.sub(r"font-family: [^;\"]+", "font-family: var(--font)", text)
    text = re.sub(r' id="', f' id="{name}-', text)
    text = re.sub(r"(?:xlink:)?href=\"#", f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    text = re.sub(r"<[^>]*>", _two_decimals, text)  # in tags, not between them: there stand the labels
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
