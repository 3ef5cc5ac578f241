"""The table of prices: what any bias costs once, and what each site costs by itself."""

import numpy as np
from scipy.special import stdtrit

from experiments.analysis.decide import Evidence
from experiments.analysis.price_model import Price
from experiments.reporting.tables.base import Table, signed

STEP_NAMES = {"training": "a training step", "inference": "a detection"}
FIXED = "fixed: any bias, once per model"


def price_table(evidence: Evidence) -> Table:
    """Return the slow-down of the fixed part and of every site, of each kind of step that was timed."""
    heads = ["what"]
    columns: list[list[tuple[float, float, float]]] = []
    for step, price in evidence.price_by_step.items():
        heads += [f"{STEP_NAMES[step]}, %", "low", "high"]
        columns.append(
            [interval(price, index, evidence.rule.confidence) for index in range(1 + len(price.terms))]
        )
    many = len(evidence.rule.treatments) > 1
    names = [FIXED, *(f"{site} {level}" if many else site for site, level in evidence.table.terms)]
    first = 0 if all(price.fixed_apart for price in evidence.price_by_step.values()) else 1
    lines: tuple[tuple[str | float, ...], ...] = tuple(
        (name, *(number for column in columns for number in column[index]))
        for index, name in enumerate(names)
        if index >= first and columns
    )
    return Table("price", "What a bias costs in time, each interval by itself", tuple(heads), lines)


def interval(price: Price, index: int, confidence: float) -> tuple[float, float, float]:
    """Return a slow-down with its interval by itself, per cent.

    Args:
        price: the fitted model.
        index: 0: the fixed price; else the term's number from 1.
        confidence: of the interval.
    """
    side = float(stdtrit(price.df, (1 + confidence) / 2)) * price.error[index]
    value, low, high = 100 * np.expm1(price.effect[index] + np.array([0, -side, side]))
    return float(value), float(low), float(high)


def slowdown_with_interval(price: Price, index: int, confidence: float) -> str:
    """Return ``interval`` for a sentence: ``+3.1 % [+2.0, +4.2]``."""
    value, low, high = interval(price, index, confidence)
    return f"{signed(value, 1)} % [{signed(low, 1)}, {signed(high, 1)}]"
