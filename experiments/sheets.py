"""Sheets: the tables of a report, as plain values.

Terminal, Markdown, CSV and HTML print the same sheets, so they cannot disagree.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.arms import final_values, typical_values
from experiments.decide import Evidence
from experiments.rule import DecideError, Rule
from pipeline.plan import Plan
from pipeline.rows import Row, select

MINUS = "\N{MINUS SIGN}"
TIMES = {
    "step_ms": "step, ms",
    "train_samples_per_s": "training, samples/s",
    "latency_p50_ms": "latency p50, ms",
    "latency_p95_ms": "latency p95, ms",
    "peak_gib": "peak memory, GiB",
}
"""Metrics of speed and memory that the table of trials shows, and how its head calls them."""
SLOWEST = 4
"""Kernels that a page names per site; the CSV file has them all."""


@dataclass(frozen=True)
class Sheet:
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


def listing(words: Sequence[str]) -> str:
    """Join words for a sentence: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def settling(further: int | None, num_arms: int) -> str:
    """Say what would settle a verdict."""
    if further == 0:
        return "settled"
    if further is None:
        return "too small to settle within 100 more seeds"
    return f"{further} more seed{'s' if further > 1 else ''} ({further * num_arms} trials)"


def short_names(sites: Sequence[str]) -> dict[str, str]:
    """Drop the parts of the paths that all sites share: ``decoder.0.cross`` -> ``0``."""
    parts = [site.split(".") for site in sites]
    if len(sites) < 2 or len({len(path) for path in parts}) > 1:
        return {site: site for site in sites}
    differ = [i for i in range(len(parts[0])) if len({path[i] for path in parts}) > 1]
    return {site: ".".join(path[i] for i in differ) for site, path in zip(sites, parts, strict=True)}


def varied_sites(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the sites whose bias kind differs between the trials."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for text in {row.plan for row in rows}:
        for site, choice in Plan.parse(text).choices:
            kinds[site].add(choice.bias)
    return tuple(sorted(site for site, found in kinds.items() if len(found) > 1))


def arm_label(plan: str, sites: Sequence[str], rule: Rule) -> str:
    """Name an arm by its treated sites, shortly: ``0 + 2``, or the baseline's name."""
    short = short_names(sites)
    choices = dict(Plan.parse(plan).choices)
    treated = [short[site] for site in sites if site in choices and choices[site].bias == rule.treatment]
    return " + ".join(treated) or rule.baseline


def verdict_sheet(evidence: Evidence) -> Sheet:
    """Return one line per site, with everything its verdict rests on."""
    columns = (
        *(
            "site",
            "verdict",
            "gain",
            "gain_low",
            "gain_high",
            "slowdown_percent",
            "price",
            "price_low",
            "price_high",
        ),
        *("net", "net_low", "net_high", "further_trials_per_arm"),
    )
    lines = tuple(
        (
            *(
                v.site,
                v.verdict,
                v.effect,
                v.low,
                v.high,
                v.slowdown_percent,
                v.price,
                v.price_low,
                v.price_high,
            ),
            *(v.net, v.net_low, v.net_high, v.further_trials),
        )
        for v in evidence.verdicts
    )
    return Sheet("verdicts", f"Verdict per layer, points of {evidence.rule.metric}", columns, lines)


def effect_sheet(evidence: Evidence) -> Sheet:
    """Return one line per site and sensor condition."""
    lines = tuple((e.site, e.condition, e.effect, e.low, e.high) for e in evidence.effects)
    title = f"Gain per layer and sensor condition, points of {evidence.rule.metric}"
    return Sheet("effects", title, ("site", "condition", "gain", "low", "high"), lines)


def condition_table(evidence: Evidence) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the effects as heads and lines to print: a line per condition, a column per site."""
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for e in evidence.effects:
        cells[e.condition][e.site] = f"{signed(e.effect)} [{signed(e.low)}, {signed(e.high)}]"
    sites = evidence.table.sites
    lines = tuple((name, *(line[site] for site in sites)) for name, line in cells.items())
    return ("condition", *sites), lines


def signed(value: float, digits: int = 2) -> str:
    """Write a number with its sign, a true minus included; zero has none."""
    text = f"{abs(value):.{digits}f}"
    sign = "" if float(text) == 0 else "+" if value > 0 else MINUS
    return sign + text


def trial_sheet(rows: Sequence[Row], rule: Rule) -> Sheet:
    """Return one line per trial: accuracy per condition in points, speed, memory."""
    sites = rule.sites or varied_sites(rows)
    trials = {row.trial: row for row in rows}
    first: dict[str, dict[str, float]] = {}
    further: dict[str, dict[str, float]] = {}
    for metric in dict.fromkeys((rule.metric, "mAP")):
        for condition in sorted(
            {r.condition for r in select(rows, metric=metric, unit="fraction", site="", scene="")}
        ):
            found = lenient_values(rows, metric, condition)
            points = {trial: 100 * value for trial, value in found.items() if not math.isnan(value)}
            (first if condition == rule.condition else further)[f"{metric} {condition}"] = points
    times = {head: typical_values(rows, metric) for metric, head in TIMES.items()}
    columns = {**first, **{head: values for head, values in times.items() if values}, **further}
    lines = [
        (arm_label(row.plan, sites, rule), row.seed, *(values.get(name) for values in columns.values()), name)
        for name, row in trials.items()
    ]
    lines.sort(key=lambda line: (line[0] != rule.baseline, str(line[0]), line[1], line[-1]))
    heads = (f"{rule.treatment} at", "seed", *columns, "trial")
    return Sheet("trials", "All trials (accuracy in points)", heads, tuple(lines))


def lenient_values(rows: Sequence[Row], metric: str, condition: str) -> dict[str, float]:
    """Return ``final_values``; of contradicting rows the newest, since a table shows and does not judge."""
    try:
        return final_values(rows, metric, condition)
    except DecideError:
        newest = sorted(select(rows, metric=metric, condition=condition, site="", scene=""), key=_age)
        return {row.trial: row.value for row in newest}


def kernel_sheet(rows: Sequence[Row]) -> Sheet:
    """Return, per site and choice, the kernels that really ran, slowest first."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    choices = {text: dict(Plan.parse(text).choices) for text in {row.plan for row in rows}}
    for row in rows:
        if row.metric.startswith("kernel:"):
            choice = str(choices[row.plan].get(row.site, ""))
            found[row.site, choice][row.metric.removeprefix("kernel:")].append(row.value)
    lines = []
    for (site, choice), kernels in sorted(found.items()):
        slowest = sorted(((sum(v) / len(v), name) for name, v in kernels.items()), reverse=True)
        lines += [(site, choice, name, ms) for ms, name in slowest]
    return Sheet(
        "kernels", "Kernels that really ran", ("site", "choice", "kernel", "ms in one step"), tuple(lines)
    )


def kernel_table(sheet: Sheet) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the kernels as heads and lines to print: a line per site and choice, the slowest named."""
    groups: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    for site, choice, kernel, ms in sheet.lines:
        groups[str(site), str(choice)].append((str(kernel), float(ms or 0)))
    lines = []
    for (site, choice), kernels in groups.items():
        named = ", ".join(f"{kernel} {ms:.2f}" for kernel, ms in kernels[:SLOWEST])
        rest = f", {len(kernels) - SLOWEST} more" if len(kernels) > SLOWEST else ""
        lines.append((site, choice, named + rest, f"{sum(ms for _, ms in kernels):.2f}"))
    return ("site", "choice", "slowest kernels, ms in one step", "together, ms"), tuple(lines)


def _age(row: Row) -> tuple[int, float]:
    return row.step, row.time
