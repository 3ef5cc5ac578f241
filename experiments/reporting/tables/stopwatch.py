"""The prices that a stopwatch measured: what any bias costs, and what each layer's own bias costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy.special import stdtrit

from experiments.analysis.price_model import Price, fit_price, price_columns
from experiments.analysis.timings import METRICS, TRUNK_METRICS, read_timings
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.reporting.tables.base import Table
from pipeline.metrics.rows import Row, select

FIXED, EVERYWHERE = "any bias at all", "every site"
"""Lines of the table besides the sites: the fixed price, and a plan with a bias at every site."""

CLOCKS = {True: ("processor time of one thread", "wall clock"), False: ("device events", "host's clock")}
"""Whether the device is a CPU -> the primary and the second clock."""


@dataclass(frozen=True)
class TimedPrices:
    """The prices of both kinds of step.

    Attributes:
        by_kind: ``training``, ``inference`` -> fitted model.
        second: kind -> median over the visits of second clock / primary clock.
        baseline_ms: kind -> median time without any bias, ms.
        trunk_ms: kind -> median time of what all plans compute alike, ms.
        device: that was timed.
    """

    by_kind: dict[str, Price]
    second: dict[str, float]
    baseline_ms: dict[str, float]
    trunk_ms: dict[str, float]
    device: str


def timed_prices(rows: Sequence[Row], sites: Sequence[str], rule: DecisionRule) -> TimedPrices:
    """Fit the price model to each kind of step.

    Args:
        rows: of one stopwatch run.
        sites: the factors.
        rule: names the treatments.

    Raises:
        AnalysisError: too few rounds, or the machine was disturbed (A/A); says which kind of step.
    """
    by_kind, second, baseline_ms, trunk_ms = {}, {}, {}, {}
    for kind, metric in METRICS.items():
        timings = read_timings(rows, sites, rule.treatments, {kind: 1.0})
        try:
            by_kind[kind] = fit_price(timings)
        except AnalysisError as error:
            raise AnalysisError(f"{kind}: {error}") from error
        primary = [row.value for row in select(rows, metric=metric)]
        other = [row.value for row in select(rows, metric=f"{metric}_wall")]
        second[kind] = median(b / a for a, b in zip(primary, other, strict=True))
        plain = [
            visit.log_ms for visit, on in zip(timings.visits, timings.treated, strict=True) if not any(on)
        ]
        baseline_ms[kind] = float(np.exp(np.median(plain)))
        trunk_ms[kind] = median([row.value for row in select(rows, metric=TRUNK_METRICS[kind])] or [0.0])
    return TimedPrices(by_kind, second, baseline_ms, trunk_ms, rows[0].device)


def stopwatch_table(prices: TimedPrices, rule: DecisionRule) -> Table:
    """Return one line per site, one for the fixed price and one for a bias everywhere, in % of a step.

    With a single site neither of the two says more than the site's own line, and they are left out.

    Args:
        prices: of both kinds of step.
        rule: its confidence is that of each interval by itself.
    """
    first = next(iter(prices.by_kind.values()))
    many = len(rule.treatments) > 1
    names = [f"{site} {treatment}" if many else site for site, treatment in first.terms]
    heads = [head for kind in prices.by_kind for head in (f"{kind}, %", "±")]
    cells = [_cells(price, rule) for price in prices.by_kind.values()]
    wholes = [f"{EVERYWHERE} {treatment}" if many else EVERYWHERE for treatment in rule.treatments]
    lines: list[tuple[str | float | int | None, ...]] = [
        (name, *(value for of_kind in cells for value in of_kind[i]))
        for i, name in enumerate([FIXED, *names, *wholes])
    ]
    if not first.fixed_apart:
        lines = lines[1:]
    if len({site for site, _ in first.terms}) == 1:
        lines = lines[: -len(wholes)]
    title = f"What a bias costs, % of a step without any ({100 * rule.confidence:g} % intervals, each alone)"
    return Table("stopwatch", title, ("price of", *heads), tuple(lines))


def _cells(price: Price, rule: DecisionRule) -> list[tuple[float, float]]:
    """Return (per cent, half-width) of the fixed price, of every site, and of every treatment everywhere."""
    quantile = stdtrit(price.df, (1 + rule.confidence) / 2)
    number = 1 + len(price.terms)
    alone = list(zip(price.percent[:number], quantile * price.percent_error[:number], strict=True))
    treated = np.array([[level == own for _, level in price.terms] for own in rule.treatments], dtype=float)
    columns = price_columns(treated, price.pairs)
    if not price.fixed_apart:
        columns[:, 0] = 0.0
    growth = columns @ price.effect
    error = np.sqrt(np.einsum("ij,jk,ik->i", columns, price.covariance, columns))
    whole = zip(100 * np.expm1(growth), quantile * 100 * np.exp(growth) * error, strict=True)
    return [(float(percent), float(half)) for percent, half in [*alone, *whole]]


def stopwatch_notes(prices: TimedPrices) -> list[str]:
    """Return the sentences below the table: rounds and clock, the A/A check, what cannot be told apart."""
    primary, second = CLOCKS[prices.device == "cpu"]
    notes = []
    for kind, price in prices.by_kind.items():
        notes.append(
            f"{kind}: {prices.baseline_ms[kind]:.4g} ms without any bias, {prices.trunk_ms[kind]:.3g} of "
            f"them in the trunk; {price.rounds} rounds; one step varies by "
            f"{100 * price.noise:.2g} %; the baseline's second visit {100 * price.again:+.2f} ± "
            f"{100 * price.again_error:.2f} % (A/A, standard error)"
        )
    if not all(price.fixed_apart for price in prices.by_kind.values()):
        notes.append("With one layer the fixed price cannot be told apart, so the layer's price holds it.")
    ratios = ", ".join(f"{ratio:.3g} in {kind}" for kind, ratio in prices.second.items())
    notes.append(f"Clock: {primary} on {prices.device}; {second} over it: {ratios}.")
    return notes
