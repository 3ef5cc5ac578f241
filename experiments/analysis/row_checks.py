"""Checks of rows before a verdict is drawn from them.

Misleading rows are refused with one sentence: trials that did not run under equal circumstances, rows that
contradict each other, a metric without any row.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from pipeline.config.plan import Plan
from pipeline.metrics.rows import Row, select

ALIKE = ("study", "recipe_digest", "commit", "device", "versions")
"""Fields in which the trials that one verdict compares must not differ."""


def refuse_mixtures(rows: Sequence[Row]) -> None:
    """Refuse trials that did not run under equal circumstances."""
    for field in ALIKE:
        trials: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            trials[getattr(row, field)].add(row.trial)
        if len(trials) > 1:
            groups = "; ".join(
                f"{v or 'none'}: {enumerate_few(sorted(names), 2)}" for v, names in trials.items()
            )
            raise AnalysisError(
                f"the trials differ in {field} ({groups}), so a difference between them proves nothing about "
                f"the bias; run them again alike"
            )


def refuse_unknown_metric(rows: Sequence[Row], rule: DecisionRule) -> None:
    """Refuse a metric that no row has, or that is no fraction."""
    scores = list(select(rows, metric=rule.metric, condition=rule.condition, site="", scene="", draw=None))
    if not scores:
        fractions = select(rows, unit="fraction", site="", scene="", draw=None)
        known = sorted({f"{row.metric} ({row.condition})" for row in fractions})
        raise AnalysisError(
            f"no row measures {rule.metric} under the condition {rule.condition!r}; "
            f"measured were {enumerate_few(known, 8) or 'no fractions at all'}"
        )
    if wrong := sorted({row.unit for row in scores} - {"fraction"}):
        raise AnalysisError(
            f"{rule.metric} is in {', '.join(wrong)}; the rule needs one in the unit fraction"
        )


def one_plan_each(rows: Sequence[Row]) -> dict[str, tuple[Plan, int]]:
    """Return trial -> (plan, seed); refuse a trial with several."""
    seen: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for row in rows:
        seen[row.trial].add((row.plan, row.seed))
    for trial, variants in seen.items():
        if len(variants) > 1:
            raise AnalysisError(
                f"the rows of trial {trial} name several plans or seeds; expected one of each"
            )
    plans = {text: Plan.parse(text) for text in {row.plan for row in rows}}
    return {trial: (plans[plan], seed) for trial, ((plan, seed),) in seen.items()}


def final_values(rows: Iterable[Row], metric: str, condition: str) -> dict[str, float]:
    """Return trial -> value of a whole-model metric at the last step it was measured.

    A row that a resumed trial wrote again is taken once; one that came out differently is refused.
    """
    every = step_values(rows, metric, condition)
    last = {trial: max(step for name, step in every if name == trial) for trial, _ in every}
    return {trial: every[trial, step] for trial, step in last.items()}


def step_values(rows: Iterable[Row], metric: str, condition: str) -> dict[tuple[str, int], float]:
    """Return (trial, step) -> value of a whole-model metric; refuses rows that contradict each other."""
    newest: dict[tuple[str, int], Row] = {}
    for row in select(rows, metric=metric, condition=condition, site="", scene="", draw=None):
        other = newest.get((row.trial, row.step))
        if other is not None and not _same(other.value, row.value):
            raise AnalysisError(
                f"trial {row.trial} has two values of {metric} ({condition or 'no condition'}) at step "
                f"{row.step}, {other.value:g} and {row.value:g}; remove the trial's folder and run it again"
            )
        if other is None or row.time >= other.time:
            newest[row.trial, row.step] = row
    return {key: row.value for key, row in newest.items()}


def last_steps(rows: Iterable[Row], metric: str, condition: str) -> dict[str, int]:
    """Return trial -> the last step at which a whole-model metric was measured."""
    steps: dict[str, int] = {}
    for row in select(rows, metric=metric, condition=condition, site="", scene="", draw=None):
        steps[row.trial] = max(row.step, steps.get(row.trial, 0))
    return steps


def typical_values(rows: Iterable[Row], metric: str) -> dict[str, float]:
    """Return trial -> median of the finite whole-model rows of a metric that is noisy in itself (a time)."""
    by_trial: dict[str, list[float]] = defaultdict(list)
    for row in select(rows, metric=metric, site="", scene="", draw=None):
        if math.isfinite(row.value):
            by_trial[row.trial].append(row.value)
    return {trial: median(values) for trial, values in by_trial.items()}


def enumerate_few(names: Iterable[str], most: int = 4) -> str:
    """List names for a sentence, at most a few of them (four fit on a line)."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
