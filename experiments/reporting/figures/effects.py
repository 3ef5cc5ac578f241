"""Gain per layer and sensor condition, with intervals and as a map."""

import math
from collections import defaultdict
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.analysis.decide import Effect, Evidence
from experiments.reporting.figures.style import Drawing, Palette
from experiments.reporting.tables.base import short_names, signed, term_label


def forest(evidence: Evidence) -> Drawing:
    """Draw the gain per layer with its interval: the judged condition thick, the others thin below it."""
    lines = len(evidence.effects) + len(evidence.verdicts)  # a head line per layer
    return Drawing(
        name="forest",
        title="Gain per layer",
        alt="Gain per layer and sensor condition with intervals; the table below has the numbers",
        caption="Thick: the condition that decides; the upright mark is the layer's own price. Thin: other "
        "sensor conditions, exploratory: the intervals of each hold together, not all of them.",
        height=0.9 + 0.235 * lines,
        paint=partial(_paint_forest, evidence=evidence),
    )


def _paint_forest(figure: Figure, axes: Axes, palette: Palette, evidence: Evidence) -> None:
    axes.axvline(0, color=palette.ink, linewidth=0.9)
    ticks: dict[float, str] = {}
    y = 0.0
    for verdict in evidence.verdicts:
        head = f"{term_label(verdict, evidence)}: {verdict.label}"
        axes.text(0.0, y, head, transform=axes.get_yaxis_transform(), weight="bold", va="center")
        for effect in evidence.effects:
            if (effect.site, effect.treatment) != (verdict.site, verdict.treatment):
                continue
            y -= 1
            judged = effect.condition == evidence.rule.condition
            colour = palette.verdict(verdict.verdict) if judged else palette.ink
            axes.plot([effect.low, effect.high], [y, y], color=colour, linewidth=3.2 if judged else 1.1)
            axes.plot(effect.effect, y, "o", color=colour, markersize=7 if judged else 4)
            if judged and math.isfinite(verdict.price):
                axes.plot([verdict.price] * 2, [y - 0.42, y + 0.42], color=palette.ink, linewidth=1.6)
            ticks[y] = effect.condition
        y -= 1.25
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(y + 0.6, 0.7)
    axes.set_xlabel(f"gain, points of {evidence.rule.metric}")


def heat_map(evidence: Evidence) -> Drawing | None:
    """Draw the gain of every layer under every sensor condition as a map.

    Returns:
        None with one condition or one layer: the forest says the same.
    """
    cells: dict[str, dict[str, Effect]] = defaultdict(dict)
    for effect in evidence.effects:
        cells[effect.condition][term_label(effect, evidence, short_names(evidence.table.sites))] = effect
    if min(len(cells), max(map(len, cells.values()))) < 2:
        return None
    return Drawing(
        name="map",
        title="Where the bias helps: layer and sensor condition",
        alt="Gain of every layer under every sensor condition; the table below has the numbers",
        caption="Blue gains, orange loses, stronger is more. Bold: the interval leaves zero out.",
        height=0.75 + 0.36 * len(cells),
        paint=partial(_paint_map, cells=cells, metric=evidence.rule.metric),
    )


def _paint_map(
    figure: Figure, axes: Axes, palette: Palette, cells: dict[str, dict[str, Effect]], metric: str
) -> None:
    columns = list(next(iter(cells.values())))
    most = max(abs(effect.effect) for line in cells.values() for effect in line.values()) or 1.0
    for y, line in enumerate(cells.values()):
        for x, name in enumerate(columns):
            if name not in line:
                continue
            effect = line[name]
            colour = palette.accent if effect.effect > 0 else palette.costs
            share = abs(effect.effect) / most
            axes.add_patch(
                Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=colour, alpha=0.55 * share, lw=0)
            )
            sure = effect.low > 0 or effect.high < 0
            weight = "bold" if sure else "normal"
            axes.text(x, y, signed(effect.effect), ha="center", va="center", weight=weight, fontsize=10)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(cells)), list(cells))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel(f"gain, points of {metric}, per layer")
