"""The price of a site: its slow-down, from the trials' step times or from the operator benchmark.

An exact implementation changes no accuracy, so its price needs a time measurement and no training. The
benchmark times every implementation at the decoder's shapes. A bias kind has the price of its fastest one.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from scipy.stats import norm

from experiments.analysis.design_table import DesignTable
from experiments.analysis.model.fit import Fit, Response
from experiments.analysis.model.linear_model import fit_sites
from experiments.analysis.model.run_order import with_order_blocks
from experiments.analysis.row_checks import enumerate_few, typical_values
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from operators.bench.rows import BenchRow
from operators.bench.rows import read_rows as read_bench_rows
from operators.spec import TRUNCATABLE_KINDS
from pipeline.metrics.rows import Row

SD_OF_SPREAD = 1 / (norm.ppf(0.8) - norm.ppf(0.2))
"""Standard deviation of a normal variable per distance between its 20th and 80th percentile."""
ERROR_OF_MEDIAN = math.sqrt(math.pi / 2)
"""Standard error of a median per standard error of the mean, normal noise."""


def price_of(
    rows: Sequence[Row], table: DesignTable, rule: DecisionRule, bench: Sequence[BenchRow] = ()
) -> tuple[Fit, tuple[str, ...]]:
    """Return the effect of every term on the logarithm of the step time, and notes for the reader.

    Args:
        rows: the rows of the study.
        table: its design.
        rule: its ``priced_by`` names the source of the slow-down.
        bench: operator benchmark, if the rule is priced by it.

    Raises:
        AnalysisError: step times or benchmark rows are missing.
    """
    if rule.price_points_per_percent == 0:
        return no_slowdown(table), ()
    times = typical_values(rows, rule.price_metric)
    usable = [trial.name for trial in table.trials if trial.name not in table.diverged]
    if lacking := [name for name in usable if times.get(name, 0.0) <= 0]:
        raise AnalysisError(
            f"{rule.price_metric} is missing or not positive in {enumerate_few(lacking)}; without it the "
            f"bias has no price (a rule with price_points_per_percent 0 asks for none)"
        )
    if rule.priced_by == "bench":
        plain = [
            times[trial.name]
            for trial in table.trials
            if trial.name in usable and set(trial.levels) == {table.baseline}
        ]
        if not plain:
            raise AnalysisError(
                "no trial without any bias ended, so the benchmark's times have no step to be part of"
            )
        return _from_bench(bench, median(plain), table, rule)
    logs = [math.log(times[t.name]) if t.name in usable else math.nan for t in table.trials]
    blocked, notes = with_order_blocks(table, rows)
    return fit_sites(Response(np.array(logs)), blocked), notes


def no_slowdown(table: DesignTable) -> Fit:
    """Return a slow-down of zero, known exactly."""
    zeros = np.zeros(len(table.terms))
    count = len(table.trials)
    return Fit(zeros, zeros, np.full(len(zeros), float(count)), count, 0.0, count, zeros)


def _from_bench(
    bench: Sequence[BenchRow], step_ms: float, table: DesignTable, rule: DecisionRule
) -> tuple[Fit, tuple[str, ...]]:
    """Return the fit and the notes if the benchmark gives the price.

    A step has one call per site, so a treatment adds the difference of the two operators' times to it.
    """
    timed = [
        row
        for row in bench
        if row.mode == "forward_backward" and row.metric == "latency" and math.isfinite(row.value)
    ]
    if not timed:
        raise AnalysisError(
            "the rule is priced by the benchmark, and none was given; run `biaswise operators bench` on the "
            "device of the trials and name its rows"
        )
    shapes = sorted({row.shape for row in timed})
    shape = rule.bench_shape or shapes[0]
    if shape not in shapes or (not rule.bench_shape and len(shapes) > 1):
        raise AnalysisError(
            f"the benchmark has the shapes {enumerate_few(shapes, 8)}; the rule's bench_shape is "
            f"{rule.bench_shape!r}, name one of them"
        )
    best = {level: _fastest(timed, shape, level) for level in (table.baseline, *table.treatments)}
    base = best[table.baseline]
    growth, error = [], []
    for _, level in table.terms:
        whole = step_ms + best[level].value - base.value
        growth.append(math.log(whole / step_ms))
        error.append(math.hypot(_error(best[level]), _error(base)) / whole)
    zeros = np.zeros(len(growth))
    df = min(row.n - 1 for row in best.values())
    implementations = ", ".join(f"{level} by {row.impl} {row.value:.3g} ms" for level, row in best.items())
    fit = Fit(np.array(growth), np.array(error), zeros + df, df, 0.0, len(table.trials), zeros)
    return fit, (f"Priced by the benchmark at {shape}, forward and backward: {implementations}.",)


def _fastest(timed: Sequence[BenchRow], shape: str, level: str) -> BenchRow:
    bias, _, impl = level.partition("/")
    impl = impl.partition("@")[0]
    kind = bias.partition(":")[0]
    candidates = [
        row
        for row in timed
        if row.shape == shape
        and row.bias == kind
        and (row.impl == impl if impl else row.impl != "lowrank" or kind not in TRUNCATABLE_KINDS)
    ]
    if not candidates:
        raise AnalysisError(f"the benchmark has no time of {level} at {shape}; run it for that bias")
    return min(candidates, key=lambda row: row.value)


def _error(row: BenchRow) -> float:
    return ERROR_OF_MEDIAN * SD_OF_SPREAD * (row.high - row.low) / math.sqrt(max(row.n, 1))


def read_bench(study_folder: Path) -> list[BenchRow]:
    """Read the operator benchmark kept with the study, ``bench.parquet``; empty if there is none."""
    path = study_folder / "bench.parquet"
    return read_bench_rows(path) if path.exists() else []
