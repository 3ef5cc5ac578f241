"""The measurements of the trials of a table, in the form that the linear model takes.

The metric is in points. Resamples are rows of their own (``pipeline.evaluation.bootstrap``): the metric of
all detections of a trial, recomputed on logs drawn with replacement, the same draws for every trial.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.design_table import DesignTable
from experiments.analysis.model.fit import Response
from experiments.analysis.row_checks import enumerate_few, final_values, last_steps, step_values
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from pipeline.config.early_stopping import STOPPED
from pipeline.metrics.rows import Row, select

Array = NDArray[np.float64]


def respond(
    rows: Sequence[Row], table: DesignTable, rule: DecisionRule, metric: str, condition: str
) -> Response:
    """Gather one metric under one condition.

    Args:
        rows: the rows of the study.
        table: the design as it ran.
        rule: its metric and condition are those that decided about early stopping.
        metric: any metric in the unit ``fraction``.
        condition: sensor condition.

    Raises:
        AnalysisError: a trial that ended lacks the metric, or was measured after another number of steps.
    """
    values = final_values(rows, metric, condition)
    names = [t.name for t in table.trials if t.name not in table.diverged and t.name not in table.stopped]
    if absent := [name for name in names if name not in values]:
        raise AnalysisError(f"{metric} is missing in {len(absent)} trials ({enumerate_few(absent)})")
    usable = {name: 100 * values[name] for name in names if math.isfinite(values[name])}
    if not usable:
        raise AnalysisError(f"no trial has a finite {metric} ({condition}); look at the trials' losses")
    steps = last_steps(rows, metric, condition)
    lengths = sorted({steps[name] for name in usable})
    if len(lengths) > 1:
        raise AnalysisError(
            f"{metric} ({condition}) was measured after {enumerate_few(map(str, lengths))} steps in "
            f"different trials; they are compared after equally many: finish with `biaswise study resume`"
        )
    draws, num_scenes = _draws(rows, list(usable), metric, condition)
    return Response(
        _in_order(usable, table),
        np.array([_in_order(draw, table) for draw in draws]).reshape(len(draws), len(table.trials)),
        num_scenes,
        _early_values(rows, table, rule),
    )


def _in_order(values: dict[str, float], table: DesignTable) -> Array:
    return np.array([values.get(trial.name, math.nan) for trial in table.trials])


def _draws(
    rows: Sequence[Row], names: Sequence[str], metric: str, condition: str
) -> tuple[list[dict[str, float]], int]:
    """Return the draws that all trials have, and how many logs each has."""
    by_draw: dict[int, dict[str, float]] = defaultdict(dict)
    scenes: set[int] = set()
    for row in select(rows, metric=metric, condition=condition, site="", scene=""):
        if row.draw is not None:
            by_draw[row.draw][row.trial] = 100 * row.value
            scenes.add(row.n)
    if len(scenes) > 1:
        raise AnalysisError(
            f"{metric} ({condition}) was resampled over {enumerate_few(map(str, sorted(scenes)))} logs in "
            f"different trials; evaluate them on the same ones"
        )
    complete = [by_draw[draw] for draw in sorted(by_draw) if all(name in by_draw[draw] for name in names)]
    return complete, scenes.pop() if complete else 0


def _early_values(rows: Sequence[Row], table: DesignTable, rule: DecisionRule) -> Array:
    """Return (steps, trials) the rule's metric after the steps at which trials stopped; NaN after a stop."""
    if not table.stopped:
        return np.empty((0, 0))
    values = step_values(rows, rule.metric, rule.condition)
    early = []
    for step in sorted(set(table.stopped.values())):
        reached = [
            trial.name
            for trial in table.trials
            if trial.name not in table.diverged and table.stopped.get(trial.name, step) >= step
        ]
        if absent := [name for name in reached if (name, step) not in values]:
            raise AnalysisError(
                f"trials were stopped after {step} steps, but {enumerate_few(absent)} lacks {rule.metric} "
                f"({rule.condition}) there; measure it at every step where `{STOPPED}` may be decided"
            )
        early.append(_in_order({name: 100 * values[name, step] for name in reached}, table))
    return np.array(early)
