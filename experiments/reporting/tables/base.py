"""The tables of a report, as plain values.

Terminal, Markdown, CSV and HTML print the same tables.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.analysis.decide import Effect, Evidence
from experiments.analysis.decision.settling import PRICE, RUNS, SCENES
from experiments.analysis.row_checks import final_values, typical_values
from experiments.analysis.verdicts import Verdict
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.factorial import level_of
from pipeline.config.plan import Plan
from pipeline.metrics.rows import Row, select

MINUS = "\N{MINUS SIGN}"
TIMES = {
    "step_ms": "step, ms",
    "train_samples_per_s": "training, samples/s",
    "inference_latency_p50_ms": "inference p50, ms",
    "inference_latency_p95_ms": "inference p95, ms",
    "peak_allocated_gib": "peak allocated, GiB",
    "peak_resident_gib": "peak resident, GiB",
}
"""Metrics of speed and memory that the table of trials shows, and how its head calls them."""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: stem of its CSV file.
        title: what it shows.
        columns: heads, with units.
        lines: values; numbers stay numbers, None is a missing one.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str | float | int | None, ...], ...]


def settling(verdict: Verdict, evidence: Evidence) -> str:
    """Return what would settle a verdict with a probability of ``POWER``, for people."""
    needed, price = verdict.to_settle, evidence.price
    if verdict.settled:
        return "settled"
    if needed is None or price is None:
        return "its price"
    if needed.out_of_reach:
        return f"noise too large to say, most of it from {needed.largest}"
    arms = evidence.table.num_arms
    parts = {
        RUNS: f"{counted(needed.seeds, 'more seed')} ({counted(needed.seeds * arms, 'trial')})"
        if needed.seeds
        else "",
        SCENES: f"{math.ceil(needed.scenes * evidence.num_scenes)} scenes" if needed.scenes > 1 else "",
        PRICE: _more_rounds(needed.timing, price.rounds) if needed.timing > 1 else "",
    }
    first = [parts.pop(needed.largest), *parts.values()]
    return ", ".join(filter(None, first))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _more_rounds(factor: float, rounds: int) -> str:
    if not rounds:
        return "a price by stopwatch"
    return f"{math.ceil((factor - 1) * rounds)} more rounds of the stopwatch"


def short_names(sites: Sequence[str]) -> dict[str, str]:
    """Drop the parts of the paths that all sites share: ``decoder.0.cross`` -> ``0``."""
    parts = [site.split(".") for site in sites]
    if len(sites) < 2 or len({len(path) for path in parts}) > 1:
        return {site: site for site in sites}
    differ = [i for i in range(len(parts[0])) if len({path[i] for path in parts}) > 1]
    return {site: ".".join(path[i] for i in differ) for site, path in zip(sites, parts, strict=True)}


def varied_sites(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the sites whose level differs between the trials."""
    levels: dict[str, set[str]] = defaultdict(set)
    for text in {row.plan for row in rows}:
        for site, choice in Plan.parse(text).choices:
            levels[site].add(level_of(choice))
    return tuple(sorted(site for site, own in levels.items() if len(own) > 1))


def arm_label(plan: str, sites: Sequence[str], rule: DecisionRule) -> str:
    """Return the short name of a trial's plan, as ``spell_levels`` does."""
    choices = dict(Plan.parse(plan).choices)
    return spell_levels([level_of(choices[site]) if site in choices else "" for site in sites], sites, rule)


def spell_levels(levels: Sequence[str], sites: Sequence[str], rule: DecisionRule) -> str:
    """Return a plan's treated sites as a short name: ``0 + 2``; with treatments if the rule has several."""
    short, many = short_names(sites), len(rule.treatments) > 1
    treated = [(short[s], level) for s, level in zip(sites, levels, strict=True) if level in rule.treatments]
    return " + ".join(f"{name} {level}" if many else name for name, level in treated) or rule.baseline


def term_label(term: Verdict | Effect, evidence: Evidence, names: Mapping[str, str] | None = None) -> str:
    """Name a site; its treatment too where the rule has several."""
    name = (names or {}).get(term.site, term.site)
    return f"{name} {term.treatment}" if len(evidence.rule.treatments) > 1 else name


VERDICT_COLUMNS = {
    **{name: name for name in ("site", "treatment", "verdict")},
    **{"gain": "effect", "gain_low": "low", "gain_high": "high"},
    **{name: name for name in ("slowdown_percent", "price", "price_low", "price_high")},
    **{"net_gain": "net", "net_gain_low": "net_low", "net_gain_high": "net_high"},
    **{name: name for name in ("equivalent", "p_value", "tested_at")},
}
"""Columns of ``verdicts.csv`` -> the fields of ``Verdict`` that they hold."""
SETTLING_COLUMNS = {
    "largest_noise": "largest",
    "further_seeds": "seeds",
    "scenes_factor": "scenes",
    "timing_factor": "timing",
}
"""Further columns -> the fields of ``ToSettle``."""
BREAK_EVEN_COLUMNS = {"break_even": "rate", "break_even_low": "low", "break_even_high": "high"}
"""Further columns, points per per cent -> the fields of ``BreakEven``."""


def verdict_table(evidence: Evidence) -> Table:
    """Return one line per site and treatment, with everything its verdict rests on."""
    lines = tuple(
        (
            *_cells(v, VERDICT_COLUMNS),
            *_cells(v.to_settle, SETTLING_COLUMNS),
            *_cells(v.break_even, BREAK_EVEN_COLUMNS),
        )
        for v in evidence.verdicts
    )
    title = f"Verdict per layer, points of {evidence.rule.metric}"
    return Table("verdicts", title, (*VERDICT_COLUMNS, *SETTLING_COLUMNS, *BREAK_EVEN_COLUMNS), lines)


def _cells(of: object, columns: Mapping[str, str]) -> list[str | float | None]:
    return [None if of is None else _finite(getattr(of, field)) for field in columns.values()]


def _finite(cell: str | float) -> str | float | None:
    return None if isinstance(cell, float) and math.isnan(cell) else cell


def effect_table(evidence: Evidence) -> Table:
    """Return one line per site, treatment, metric and sensor condition."""
    effects = (*evidence.effects, *evidence.other_effects)
    lines = tuple((e.site, e.treatment, e.metric, e.condition, e.effect, e.low, e.high) for e in effects)
    heads = ("site", "treatment", "metric", "condition", "gain", "low", "high")
    title = "Gain per layer and sensor condition, points (exploratory but for the judged condition)"
    return Table("effects", title, heads, lines)


def condition_table(evidence: Evidence) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the effects as heads and lines to print: a line per metric and condition, a column per term."""
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    columns = [term_label(verdict, evidence) for verdict in evidence.verdicts]
    for e in (*evidence.effects, *evidence.other_effects):
        text = f"{signed(e.effect)} [{signed(e.low)}, {signed(e.high)}]"
        cells[f"{e.metric} {e.condition}"][term_label(e, evidence)] = text
    lines = tuple((name, *(line.get(column, "-") for column in columns)) for name, line in cells.items())
    return ("condition", *columns), lines


def signed(value: float, digits: int = 2) -> str:
    """Write a number with its sign, a true minus included; zero has none."""
    text = f"{abs(value):.{digits}f}"
    sign = "" if float(text) == 0 else "+" if value > 0 else MINUS
    return sign + text


def trial_table(rows: Sequence[Row], rule: DecisionRule) -> Table:
    """Return one line per trial: accuracy per condition in points, speed, memory."""
    sites = rule.sites or varied_sites(rows)
    trials = {row.trial: row for row in rows}
    first: dict[str, dict[str, float]] = {}
    further: dict[str, dict[str, float]] = {}
    for metric in dict.fromkeys((rule.metric, "mAP")):
        for condition in sorted(
            {r.condition for r in select(rows, metric=metric, unit="fraction", site="", scene="", draw=None)}
        ):
            fractions = lenient_values(rows, metric, condition)
            points = {trial: 100 * value for trial, value in fractions.items() if not math.isnan(value)}
            (first if condition == rule.condition else further)[f"{metric} {condition}"] = points
    times = {head: typical_values(rows, metric) for metric, head in TIMES.items()}
    columns = {**first, **{head: values for head, values in times.items() if values}, **further}
    lines = [
        (arm_label(row.plan, sites, rule), row.seed, *(values.get(name) for values in columns.values()), name)
        for name, row in trials.items()
    ]
    lines.sort(key=lambda line: (line[0] != rule.baseline, str(line[0]), line[1], line[-1]))
    heads = (f"{' or '.join(rule.treatments)} at", "seed", *columns, "trial")
    return Table("trials", "All trials (accuracy in points)", heads, tuple(lines))


def spell(cell: str | float | int | None) -> str:
    """Write a cell for people: floats with two decimals, a missing value as a dash."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.2f}".replace("-", MINUS)
    return str(cell)


def lenient_values(rows: Sequence[Row], metric: str, condition: str) -> dict[str, float]:
    """Return ``final_values``; of contradicting rows the newest, since a table shows and does not judge."""
    try:
        return final_values(rows, metric, condition)
    except AnalysisError:
        whole = select(rows, metric=metric, condition=condition, site="", scene="", draw=None)
        newest = sorted(whole, key=_age)
        return {row.trial: row.value for row in newest}


def _age(row: Row) -> tuple[int, float]:
    return row.step, row.time
