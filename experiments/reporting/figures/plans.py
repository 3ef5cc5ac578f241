"""Figures of accuracy against speed, and of ``bias_scale`` over training."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.analysis.recommend import THROUGHPUT, pareto_front
from experiments.analysis.row_checks import typical_values
from experiments.recipes.decision_rule import DecisionRule
from experiments.reporting.figures.style import Drawing, Palette, label_points
from experiments.reporting.tables.base import arm_label, lenient_values, varied_sites
from pipeline.config.plan import Plan
from pipeline.metrics.rows import Row, select

MOST_NAMED = 10
"""Plans that all get their name; of more, only those of the front, the baseline and the recommended one."""

Points = dict[str, tuple[float, float]]
"""Name -> (speed, accuracy)."""


def accuracy_speed(rows: Sequence[Row], rule: DecisionRule, best: str = "") -> Drawing | None:
    """Draw accuracy against throughput: a disc per plan, the front of the best, the price as a line.

    Args:
        rows: the study.
        rule: its rule.
        best: name (``arm_label``) of the recommended plan; ringed, if it ran.

    Returns:
        None if no trial has both numbers.
    """
    speeds = typical_values(rows, THROUGHPUT)
    values = lenient_values(rows, rule.metric, rule.condition)
    sites = rule.sites or varied_sites(rows)
    plans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for trial, plan in sorted({(row.trial, row.plan) for row in rows}):
        point = speeds.get(trial, math.nan), 100 * values.get(trial, math.nan)
        if all(map(math.isfinite, point)):
            plans[arm_label(plan, sites, rule)].append(point)
    if not plans:
        return None
    return Drawing(
        name="speed",
        title="Accuracy and speed of every plan",
        alt="Accuracy against training throughput, a point per plan; the table of plans has the numbers",
        caption="A disc is the mean of a plan, named by the layers that have the bias; its dots are the "
        "seeds. No plan is better in both than those on the stepped line. Plans above the dashed line are "
        "worth their price at their trials' own speed. The ring marks the best guess, if it ran.",
        height=3.8,
        paint=partial(_paint_speed, plans=plans, rule=rule, best=best),
    )


def _paint_speed(
    figure: Figure,
    axes: Axes,
    palette: Palette,
    plans: Mapping[str, list[tuple[float, float]]],
    rule: DecisionRule,
    best: str,
) -> None:
    means = {
        name: (fmean(x for x, _ in points), fmean(y for _, y in points)) for name, points in plans.items()
    }
    seeds = [point for points in plans.values() for point in points]
    for name, points in plans.items():
        for one in points:
            axes.plot(*zip(means[name], one, strict=True), color=palette.ink, alpha=0.25, linewidth=0.8)
    axes.scatter(
        [x for x, _ in seeds], [y for _, y in seeds], s=9, color=palette.ink, alpha=0.45, linewidths=0
    )
    front = pareto_front(means)
    axes.step(
        *zip(*(means[name] for name in front), strict=True), where="pre", color=palette.accent, linewidth=1
    )
    for name, mean in means.items():
        fill = palette.page if name == rule.baseline else palette.accent
        edge = palette.ink if name == rule.baseline else palette.accent
        axes.scatter(*mean, s=46, zorder=3, color=fill, edgecolors=edge)
    if best in means:
        axes.scatter(*means[best], s=170, zorder=3, color="none", edgecolors=palette.pays, linewidths=1.8)
    if rule.baseline in means and rule.price_of == "training":  # the axis of speeds is that of trainings
        _price_line(axes, means[rule.baseline], rule, palette)
    axes.set_xlabel("training, samples per second")
    axes.set_ylabel(f"{rule.metric}, points ({rule.condition})")
    named = (
        means
        if len(means) <= MOST_NAMED
        else {n: means[n] for n in {*front, rule.baseline, best} & set(means)}
    )
    label_points(figure, axes, dict(sorted(named.items())), list(means.values()))


def _price_line(axes: Axes, baseline: tuple[float, float], rule: DecisionRule, palette: Palette) -> None:
    """Draw the accuracy that each speed must reach to be worth its price, from the baseline on."""
    axes.margins(x=0.14, y=0.12)
    axes.autoscale_view()
    low, high = axes.get_xlim()
    bounds = axes.get_ylim()
    speeds = [low + (high - low) * i / 20 for i in range(21)]
    rate = 100 * rule.price_points_per_percent
    worth = [baseline[1] + rate * (baseline[0] / speed - 1) for speed in speeds if speed > 0]
    axes.plot(speeds[-len(worth) :], worth, color=palette.ink, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlim(low, high)
    axes.set_ylim(bounds)


def learned_scale(rows: Sequence[Row], rule: DecisionRule) -> Drawing | None:
    """Draw ``bias_scale`` as it is learned: thin a trial, bold the mean of trials alike.

    Where layers have scales of their own, trials are alike in the layer; where they share one, in the
    number of layers that use it.

    Returns:
        None if no trial with the treatment recorded it.
    """
    sites = rule.sites or varied_sites(rows)
    curves = _scale_curves(rows, rule, sites)
    if not curves:
        return None
    shared = (
        "" if any(name in sites for name in curves) else "One factor is shared by all layers with the bias. "
    )
    return Drawing(
        name="scale",
        title="The learned bias scale",
        alt="bias_scale over the steps of training, a line per trial; their rows have the numbers",
        caption=f"{shared}Thin: a trial. Bold: the mean of the trials with the same label.",
        height=2.9,
        paint=partial(_paint_scale, groups=curves),
    )


def _scale_curves(
    rows: Sequence[Row], rule: DecisionRule, sites: Sequence[str]
) -> dict[str, list[dict[int, float]]]:
    """Return label -> curves (step -> value) of ``bias_scale``, one a trial."""
    treated: dict[str, list[str]] = {}
    for text in {row.plan for row in rows}:
        choices = dict(Plan.parse(text).choices)
        treated[text] = [s for s in sites if s in choices and choices[s].bias != rule.baseline]
    own = any(row.site in sites for row in select(rows, metric="bias_scale"))
    curves: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in select(rows, metric="bias_scale"):
        layers = treated[row.plan]
        if bool(row.site) != own or not math.isfinite(row.value) or not layers:
            continue
        label = row.site if own else f"{len(layers)} layer{'s' if len(layers) > 1 else ''}"
        if not own or row.site in layers:
            curves[label][row.trial][row.step] = row.value
    return {label: list(by_trial.values()) for label, by_trial in sorted(curves.items())}


def _paint_scale(
    figure: Figure, axes: Axes, palette: Palette, groups: Mapping[str, Sequence[Mapping[int, float]]]
) -> None:
    ends = {}
    for label, curves in groups.items():
        for curve in curves:
            axes.plot(*zip(*sorted(curve.items()), strict=True), color=palette.ink, alpha=0.25, linewidth=0.8)
        if shared := sorted(set.intersection(*(set(curve) for curve in curves))):
            means = [fmean(curve[step] for curve in curves) for step in shared]
            axes.plot(shared, means, color=palette.accent, linewidth=2)
            ends[label] = (shared[-1], means[-1])
    axes.margins(x=0)
    low, high = axes.get_ylim()
    least = 0.09 * (high - low)  # a line of text
    y = -math.inf
    for label, (step, value) in sorted(ends.items(), key=lambda item: item[1][1]):
        y = max(value, y + least)
        axes.annotate(f" {label}", (step, y), color=palette.accent, va="center", annotation_clip=False)
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("bias_scale")
