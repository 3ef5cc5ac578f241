"""Gains by screening against gains by retraining."""

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.analysis.decide import Evidence
from experiments.analysis.screening import Ranked
from experiments.analysis.verdicts import Verdict
from experiments.reporting.figures.style import Drawing, Palette, label_points
from experiments.reporting.tables.base import short_names
from experiments.reporting.tables.screening import retrained


def screening_figure(ranked: Sequence[Ranked], evidence: Evidence) -> Drawing | None:
    """Draw each layer's gain by screening against its gain by retraining; None if no layer has both."""
    verdicts = retrained(evidence)
    both = [(one, verdicts[one.site]) for one in ranked if one.site in verdicts]
    if not both:
        return None
    return Drawing(
        name="screening",
        title="Screening against retraining",
        alt="Gain of every layer by screening against its gain by retraining; the table has the numbers",
        caption="On the dashed line screening and retraining agree. Screening switches the bias off in one "
        "trained model: it ranks layers, and gives no verdict.",
        height=3.6,
        paint=partial(_paint, both=both, metric=evidence.rule.metric),
    )


def _paint(
    figure: Figure, axes: Axes, palette: Palette, both: Sequence[tuple[Ranked, Verdict]], metric: str
) -> None:
    axes.axhline(0, color=palette.ink, linewidth=0.9)
    axes.axvline(0, color=palette.ink, linewidth=0.9)
    for one, verdict in both:
        colour = palette.verdict(verdict.verdict)
        axes.plot([one.effect] * 2, [verdict.low, verdict.high], color=colour, linewidth=1.4)
        axes.plot(one.effect, verdict.effect, "o", color=colour, markersize=7)
    axes.margins(0.12)
    low = max(axes.get_xlim()[0], axes.get_ylim()[0])
    high = min(axes.get_xlim()[1], axes.get_ylim()[1])
    if low < high:
        axes.plot([low, high], [low, high], color=palette.ink, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlabel(f"screening, points of {metric}")
    axes.set_ylabel("retraining, points")
    short = short_names([one.site for one, _ in both])
    label_points(figure, axes, {short[one.site]: (one.effect, verdict.effect) for one, verdict in both})
