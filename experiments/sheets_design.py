"""Sheets of a design: plans compared, interactions, what cannot be told apart, what it all cost."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from experiments.confirmation import Confirmed
from experiments.decide import Evidence
from experiments.recommend import Recommendation, measured_arms, pareto_front, predict
from experiments.sheets import Sheet, short_names, spell_levels
from pipeline.rows import Row

MOST_PLANS_SHOWN = 12
"""Lines that a page shows of the plans; the CSV file has them all."""
FRONT = "front"


def plan_sheet(rows: Sequence[Row], evidence: Evidence, advice: Recommendation) -> Sheet:
    """Return one line per plan, best utility first: predicted, measured, whether it is on the front."""
    table, rule = evidence.table, evidence.rule
    measured = measured_arms(rows, evidence)
    points = {spell_levels(a, table.sites, rule): (m.samples_per_s, m.accuracy) for a, m in measured.items()}
    front = pareto_front({name: point for name, point in points.items() if point[0] > 0})
    level = advice.accuracy - advice.best.gain
    speed = advice.samples_per_s * (1 + advice.best.slowdown_percent / 100)
    lines = []
    for c in advice.candidates:
        name, m = spell_levels(c.levels, table.sites, rule), measured.get(c.levels)
        predicted = (c.utility, level + c.gain, _known(speed / (1 + c.slowdown_percent / 100)))
        found = (m.accuracy, _known(m.samples_per_s), m.seeds) if m else (None, None, 0)
        lines.append((name, *predicted, *found, FRONT if name in front else ""))
    heads = (
        *(f"{' or '.join(rule.treatments)} at", "utility, points"),
        *(f"{rule.metric} predicted", "samples/s predicted", f"{rule.metric} measured", "samples/s measured"),
        *("seeds", "Pareto front"),
    )
    title = f"Plans, best utility first ({rule.metric} {rule.condition} in points)"
    return Sheet("plans", title, heads, tuple(lines))


def shown_plans(sheet: Sheet, baseline: str) -> tuple[tuple[str | float | int | None, ...], ...]:
    """Return the lines a page shows: the best, those of the front, and the baseline."""
    lines = sheet.lines
    kept = [i for i, line in enumerate(lines) if line[-1] == FRONT or line[0] == baseline]
    best = [i for i in range(len(lines)) if i not in kept][: max(1, MOST_PLANS_SHOWN - len(kept))]
    return tuple(lines[i] for i in sorted({*kept, *best}))


def confirmation_sheet(confirmed: Sequence[Confirmed], evidence: Evidence) -> Sheet:
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
    return Sheet("confirmation", "Confirmation on fresh seeds, points, paired by seed", heads, lines)


def interaction_sheet(evidence: Evidence) -> Sheet:
    """Return one line per pair of sites, or per group of pairs that the arms cannot tell apart."""
    short = short_names(evidence.table.sites)
    lines = tuple(
        (" or ".join(f"{short[a]} with {short[b]}" for a, b in pair.pairs), pair.effect, pair.low, pair.high)
        for pair in evidence.interactions
    )
    title = f"What pairs of layers gain beyond the sum, points of {evidence.rule.metric}, each interval alone"
    return Sheet("interactions", title, ("layers", "gain", "low", "high"), lines)


def alias_sheet(evidence: Evidence) -> Sheet:
    """Return one line per group of effects that the arms cannot tell apart."""
    lines = tuple((" = ".join(name.replace(":", " with ") for name in group),) for group in evidence.aliases)
    return Sheet("aliases", "What these arms cannot tell apart", ("effects seen as one",), lines)


def cost_sheet(rows: Sequence[Row], evidence: Evidence | None) -> Sheet:
    """Return what the study cost and, if there are verdicts, what the full grid of its plans would have cost.

    A trial's hours reach from its first row to its last, of every session of its own: starting up is not in
    them, nor is the time between a crash and the resumed trial, where it logged nothing for half an hour.
    """
    hours = trial_hours(rows)
    device = " and ".join(sorted({row.device for row in rows}))
    total = sum(hours.values())
    lines: list[tuple[str | float | int | None, ...]] = [("this study", len(hours), total, device)]
    if evidence is not None:
        table = evidence.table
        grid = len(table.seeds)
        for site in table.sites:
            grid *= 1 + sum(s == site for s, _ in table.terms)
        lines.append(
            ("the full grid of plans, as many seeds", grid, grid * total / max(len(hours), 1), device)
        )
    return Sheet("cost", "What it cost", ("what", "trials", "hours", "on"), tuple(lines))


LONGEST_PAUSE_S = 1800.0
"""A trial that is silent for longer did not run: the longest silence of a running one is its evaluation."""


def trial_hours(rows: Sequence[Row]) -> dict[str, float]:
    """Return trial -> hours during which it wrote rows."""
    times: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        times[row.trial].append(row.time)
    found = {}
    for trial, stamps in times.items():
        stamps.sort()
        pauses = (b - a for a, b in pairwise(stamps))
        found[trial] = sum(pause for pause in pauses if pause <= LONGEST_PAUSE_S) / 3600
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _known(value: float) -> float | None:
    return value if value > 0 else None
