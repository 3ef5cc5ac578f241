"""The price of a study: by its stopwatch, or from the step times of its trials.

Trials that share a machine slow each other down, so their step times are a makeshift. Either way a bias
has a fixed price, which the first biased site must not pay alone (``price_model``).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.design_table import DesignTable
from experiments.analysis.model.run_order import RunOrder, run_order, with_order_blocks
from experiments.analysis.price_model import Price, fit_price, price_columns
from experiments.analysis.row_checks import enumerate_few, typical_values
from experiments.analysis.timings import METRICS, read_timings
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from pipeline.metrics.rows import Row, read_rows

Array = NDArray[np.float64]

FOLDER = "stopwatch"
"""Folder of a study with the rows of its stopwatch, ``rows.jsonl``."""
AS_THE_TRIALS = ("study", "recipe_digest", "device", "versions")
"""Fields in which the stopwatch must equal the trials."""


@dataclass(frozen=True)
class Prices:
    """What a study knows of its price.

    Attributes:
        judged: what the rule prices; None if it was not measured.
        by_step: kind of step -> its own price, for the reader.
        notes: sentences for the reader.
    """

    judged: Price | None
    by_step: Mapping[str, Price] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def price_of(rows: Sequence[Row], table: DesignTable, rule: DecisionRule, timed: Sequence[Row]) -> Prices:
    """Return the price.

    Args:
        rows: of the trials.
        table: the design.
        rule: its ``priced_by`` names the source, its ``price_of`` the step.
        timed: rows of the stopwatch; none if it did not run.

    Raises:
        AnalysisError: step times are missing, or the stopwatch's rows support no price.
    """
    if timed:
        _refuse_other_circumstances(rows, timed)
    by_step, notes = _every_step(timed, table)
    if rule.price_points_per_percent == 0:
        return Prices(free_of_charge(table), by_step, notes)
    if rule.priced_by == "trials":
        price, about = price_of_trials(rows, table, rule)
        note = "The price is from the trials' own step times; trials that run side by side disturb them."
        return Prices(price, {"training": price} | by_step, (note, *about, *notes))
    if not timed:
        study = rows[0].study or "NAME"
        note = f"The price is not measured, so nothing is weighed: `biaswise study time {study}` measures it."
        return Prices(None, {}, (note,))
    weights = rule.price_weights
    one = next(iter(weights))
    price = by_step[one] if len(weights) == 1 and one in by_step else _by_stopwatch(timed, table, weights)
    return Prices(price, by_step, (*notes, *_about_commits(rows, timed)))


def price_of_trials(
    rows: Sequence[Row], table: DesignTable, rule: DecisionRule
) -> tuple[Price, tuple[str, ...]]:
    """Fit the price model to the step times of the trials: least squares, with a block per seed.

    A drift and the places join the blocks as far as the trials can tell them apart (``model.run_order``).

    Returns:
        The price, and notes about drift and places.

    Raises:
        AnalysisError: a step time is missing, or no degree of freedom is left.
    """
    times = typical_values(rows, rule.price_metric)
    usable = [trial.name for trial in table.trials if trial.name not in table.diverged]
    if lacking := [name for name in usable if times.get(name, 0.0) <= 0]:
        raise AnalysisError(
            f"{rule.price_metric} is missing or not positive in {enumerate_few(lacking)}; without it the "
            f"bias has no price (a rule with price_points_per_percent 0 asks for none)"
        )
    logs = [math.log(times[t.name]) if t.name in usable else math.nan for t in table.trials]
    return fit_trial_times(np.array(logs), table, run_order(rows, table))


def fit_trial_times(log_ms: Array, table: DesignTable, order: RunOrder) -> tuple[Price, tuple[str, ...]]:
    """Fit the price model to step times: see ``price_of_trials``.

    Args:
        log_ms: (trials,) logarithm of every trial's step time; NaN for one that diverged.
        table: the design.
        order: when and where the trials started.

    Raises:
        AnalysisError: no degree of freedom is left.
    """
    kept = np.isfinite(log_ms)
    logs = log_ms[kept]
    wide = price_columns(table.treated[kept])
    apart = _rank(np.hstack([wide, table.blocks[kept]])) == _rank(table.blocks[kept]) + wide.shape[1]
    columns = wide if apart else wide[:, 1:]
    blocked, notes = with_order_blocks(table, order)
    for said in (notes, ()):  # without drift and places, if they leave no degree of freedom
        blocks = (blocked if said else table).blocks[kept]
        matrix = np.hstack([columns, blocks[:, blocks.any(axis=0)]])
        df = len(matrix) - matrix.shape[1]
        if df >= 1 and _rank(matrix) == matrix.shape[1]:
            break
    else:
        raise AnalysisError(
            f"the step times of {len(logs)} trials cannot tell the prices of {', '.join(table.sites)}, the "
            f"fixed price and the noise apart; add a seed, or let a stopwatch measure the price"
        )
    effect = np.linalg.lstsq(matrix, logs, rcond=None)[0]
    variance = float(((logs - matrix @ effect) ** 2).sum()) / df
    covariance = variance * np.linalg.inv(matrix.T @ matrix)
    count = columns.shape[1]
    effect, covariance = effect[:count], covariance[:count, :count]
    if not apart:
        effect, covariance = np.insert(effect, 0, 0.0), np.pad(covariance, ((1, 0), (1, 0)))
    return Price(table.terms, effect, covariance, float(df), apart, noise=math.sqrt(variance)), said


def _rank(matrix: Array) -> int:
    return int(np.linalg.matrix_rank(matrix))


def free_of_charge(table: DesignTable) -> Price:
    """Return a slow-down of zero, known exactly."""
    count = 1 + len(table.terms)
    return Price(table.terms, np.zeros(count), np.zeros((count, count)), float(len(table.trials)))


def read_stopwatch(study_folder: Path) -> list[Row]:
    """Read the rows of the study's stopwatch; empty if it did not run."""
    path = study_folder / FOLDER / "rows.jsonl"
    return read_rows(path) if path.exists() else []


def _by_stopwatch(timed: Iterable[Row], table: DesignTable, weights: Mapping[str, float]) -> Price:
    price = fit_price(read_timings(timed, table.sites, table.treatments, weights))
    if price.terms != table.terms:
        raise AnalysisError(
            f"the stopwatch timed {len(price.terms)} of the study's {len(table.terms)} biases; run "
            f"`biaswise study time` again"
        )
    return price


def _every_step(timed: Sequence[Row], table: DesignTable) -> tuple[dict[str, Price], tuple[str, ...]]:
    """Return the price of every kind of step that was timed, and a note for each that has none."""
    metrics = {row.metric for row in timed}
    prices, notes = {}, []
    for step in (step for step, metric in METRICS.items() if metric in metrics):
        try:
            prices[step] = _by_stopwatch(timed, table, {step: 1.0})
        except AnalysisError as error:
            notes.append(f"No price of {step}: {error}.")
    return prices, tuple(notes)


def _refuse_other_circumstances(rows: Sequence[Row], timed: Sequence[Row]) -> None:
    for name in AS_THE_TRIALS:
        ours, theirs = ({getattr(row, name) for row in group} for group in (rows, timed))
        if not theirs <= ours:
            raise AnalysisError(
                f"the stopwatch ran with {name} {enumerate_few(sorted(theirs)) or 'none'} and the trials "
                f"with {enumerate_few(sorted(ours)) or 'none'}; run `biaswise study time` again"
            )


def _about_commits(rows: Sequence[Row], timed: Sequence[Row]) -> tuple[str, ...]:
    ours, theirs = ({row.commit for row in group} for group in (rows, timed))
    if theirs <= ours:
        return ()
    return (f"The stopwatch ran at commit {enumerate_few(sorted(theirs))}, the trials at another.",)
