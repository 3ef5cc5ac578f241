"""The tables of plans, confirmation, interactions, aliases and cost."""

import math
from collections.abc import Mapping, Sequence

from experiments.analysis.confirmation import Confirmed
from experiments.analysis.decide import Evidence
from experiments.analysis.recommend import (
    Recommendation,
    measured_arms,
    pareto_front,
    predict,
    training_growth,
)
from experiments.reporting.tables.base import Table, short_names, spell_levels
from experiments.storage.usage import Used
from pipeline.metrics.rows import Row

MOST_PLANS_SHOWN = 12
"""Lines that a page shows of the plans; the CSV file has them all."""
FRONT = "front"
STUDY = "this study"
"""Name of the study's own trials in the table of costs."""


def plan_table(rows: Sequence[Row], evidence: Evidence, advice: Recommendation) -> Table:
    """Return one line per plan, best utility first: predicted, measured, whether it is on the front."""
    table, rule = evidence.table, evidence.rule
    measured = measured_arms(rows, evidence)
    points = {spell_levels(a, table.sites, rule): (m.samples_per_s, m.accuracy) for a, m in measured.items()}
    front = pareto_front({name: point for name, point in points.items() if point[0] > 0})
    level = advice.accuracy - advice.best.gain
    growths = training_growth([c.levels for c in (advice.best, *advice.candidates)], evidence)
    speed = advice.samples_per_s * (1 + growths[0])
    lines = []
    for c, growth in zip(advice.candidates, growths[1:], strict=True):
        name, m = spell_levels(c.levels, table.sites, rule), measured.get(c.levels)
        predicted = (c.utility, level + c.gain, _known(speed / (1 + growth)))
        measurement = (m.accuracy, _known(m.samples_per_s), m.seeds) if m else (None, None, 0)
        lines.append((name, *predicted, *measurement, FRONT if name in front else ""))
    heads = (
        *(f"{' or '.join(rule.treatments)} at", "utility, points"),
        *(f"{rule.metric} predicted", "samples/s predicted", f"{rule.metric} measured", "samples/s measured"),
        *("seeds", "Pareto front"),
    )
    title = f"Plans, best utility first ({rule.metric} {rule.condition} in points)"
    return Table("plans", title, heads, tuple(lines))


def shown_plans(table: Table, baseline: str) -> tuple[tuple[str | float | int | None, ...], ...]:
    """Return the lines a page shows: the best, those of the front, and the baseline."""
    lines = table.lines
    kept = [i for i, line in enumerate(lines) if line[-1] == FRONT or line[0] == baseline]
    best = [i for i in range(len(lines)) if i not in kept][: max(1, MOST_PLANS_SHOWN - len(kept))]
    return tuple(lines[i] for i in sorted({*kept, *best}))


def confirmation_table(confirmed: Sequence[Confirmed], evidence: Evidence) -> Table:
    """Return one line per plan of the confirmation: predicted by the study, measured on fresh seeds."""
    table, rule = evidence.table, evidence.rule
    lines = tuple(
        (
            *(
                spell_levels(one.levels, table.sites, rule),
                one.accuracy,
                _known(one.samples_per_s),
                one.seeds,
            ),
            *map(_finite, (predict(one.levels, evidence).gain, one.gain, one.low, one.high)),
        )
        for one in confirmed
    )
    heads = (
        *(f"{' or '.join(rule.treatments)} at", f"{rule.metric} measured", "samples/s measured", "seeds"),
        *("gain predicted", "gain measured", "low", "high"),
    )
    return Table("confirmation", "Confirmation on fresh seeds, points, paired by seed", heads, lines)


def interaction_table(evidence: Evidence) -> Table:
    """Return one line per pair of sites, or per group of pairs that the arms do not separate."""
    short = short_names(evidence.table.sites)
    lines = tuple(
        (" or ".join(f"{short[a]} with {short[b]}" for a, b in pair.pairs), pair.effect, pair.low, pair.high)
        for pair in evidence.interactions
    )
    title = f"What pairs of layers gain beyond the sum, points of {evidence.rule.metric}, each interval alone"
    return Table("interactions", title, ("layers", "gain", "low", "high"), lines)


def alias_table(evidence: Evidence) -> Table:
    """Return one line per group of effects that the arms do not separate."""
    lines = tuple((" = ".join(name.replace(":", " with ") for name in group),) for group in evidence.aliases)
    return Table("aliases", "What these arms cannot tell apart", ("effects seen as one",), lines)


def cost_table(parts: Mapping[str, Mapping[str, Used]], evidence: Evidence | None) -> Table:
    """Return what the study cost, and what it would have cost without cohorts, or as the full grid of plans.

    Args:
        parts: ``STUDY`` and whatever else ran -> trial -> what it used.
        evidence: says which trials ran to their end, and what the grid is.
    """
    lines = [_cost_line(name, list(trials.values())) for name, trials in parts.items() if trials]
    if any(used.saved for used in parts[STUDY].values()):
        alone = [_alone(used) for used in parts[STUDY].values()]
        lines.append(_cost_line("its trials one at a time, at least", alone))
    if evidence is not None:
        table = evidence.table
        whole = [used for name, used in parts[STUDY].items() if name not in table.stopped]
        size = len(table.seeds)
        for site in table.sites:
            size *= 1 + sum(s == site for s, _ in table.terms)
        mean = Used(_mean([u.hours for u in whole]), _mean([u.gpu_hours for u in whole]))
        lines.append(_cost_line(f"the full grid of plans, {len(table.seeds)} seeds", [mean] * size))
    heads = ("what", "trials", "hours", "GPU hours")
    return Table("cost", "What it cost; trials of a cohort share its hours", heads, tuple(lines))


def _alone(used: Used) -> Used:
    """Return what a trial would have used at least without its cohort."""
    hours = used.hours + used.saved
    return Used(hours, used.gpu_hours * hours / used.hours if used.hours else 0.0)


def _cost_line(name: str, trials: Sequence[Used]) -> tuple[str | float | int | None, ...]:
    return name, len(trials), sum(u.hours for u in trials), sum(u.gpu_hours for u in trials)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _known(value: float) -> float | None:
    return value if value > 0 else None
