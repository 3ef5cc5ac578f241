"""``biaswise throughput``: how fast a config trains and detects under several plans, at its real size."""

import time
from argparse import Namespace
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.overrides import read_overrides
from pipeline.config.plan import Plan, PlanError
from pipeline.metrics.rows import PEAKS, Row

COLUMNS = {
    "step_ms": "train step, ms",
    "train_samples_per_s": "samples/s",
    "train_peak_allocated_gib": "allocated GiB",
    "train_peak_resident_gib": "resident GiB",
    "inference_latency_p50_ms": "inference, ms",
    "inference_frames_per_s": "FPS",
    "inference_peak_allocated_gib": "allocated GiB",
    "inference_peak_resident_gib": "resident GiB",
    "loss_first": "loss: first",
    "loss_last": "last steps",
}
"""Metric -> heading, of those that were measured; ``±`` is half of the 20-80 percentile range."""

RATIOS = {
    "step_ms": "step ratio",
    "train_peak_allocated_gib": "memory ratio",
    "train_peak_resident_gib": "memory ratio",
    "inference_latency_p50_ms": "inference ratio",
}
"""Metric -> heading of its ratio to the first plan."""

MODULE_TIME = "_module_ms"
"""How the first part of a metric ends that is the forward time of one module."""

WIDTH = 200
"""Characters of a line where the output is no terminal."""


def throughput(arguments: Namespace) -> int:
    """Run the race, print its table, and what else was asked for."""
    import torch

    from pipeline.training.benchmark import BenchmarkSettings, named_plans, run_benchmark

    cuda = arguments.device == "cuda" or (arguments.device is None and torch.cuda.is_available())
    bench = BenchmarkSettings(
        config=arguments.config,
        device="cuda" if cuda else "cpu",
        steps=arguments.steps,
        calls=arguments.calls,
        batch=arguments.batch,
        boxes=arguments.boxes,
        fold=not arguments.no_fold,
        cuda_graphs=not arguments.no_graph,
        parts=arguments.parts,
        rounds=arguments.rounds,
        overrides=read_overrides(arguments.cfg_options),
        seed=arguments.seed,
    )
    if cuda and arguments.memory_gib:
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, arguments.memory_gib / total))
    plans = chosen(arguments.plans, named_plans(cuda))
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    folder = Path(arguments.out or f"runs/throughput/{Path(bench.config).stem}_{int(time.time())}")
    rows = run_benchmark(bench, plans, folder)
    console.print(table(rows))
    if arguments.parts:
        console.print(parts_table(rows))
    console.print(f"rows in {folder / 'rows.jsonl'}", highlight=False, soft_wrap=True)
    if arguments.profile or arguments.waits:
        _look_closer(bench, plans, arguments, console)
    return 0


def chosen(words: Sequence[str], named: Mapping[str, Plan]) -> dict[str, Plan | None]:
    """Read ``--plans``: names, ``config`` for what the config says, or ``NAME:pattern=bias/impl;...``."""
    found: dict[str, Plan | None] = {}
    for word in words:
        name, colon, text = word.partition(":")
        if colon:
            found[name] = Plan.parse(text)
        elif name == "config":
            found[name] = None
        elif name in named:
            found[name] = named[name]
        else:
            raise PlanError(
                f"--plans {word}: expected one of config, {', '.join(named)}, or NAME:pattern=bias/impl;..."
            )
    return found


def table(rows: Sequence[Row]) -> Table:
    """Return one line per plan; ratios are to the first plan in the same round, medians over the rounds."""
    trials = list(dict.fromkeys(row.trial for row in rows))
    title = trials[0].partition("@")[2] if trials else None
    values = rounds_of(rows)
    measured = {row.metric for row in rows}
    columns = {metric: head for metric, head in COLUMNS.items() if _belongs(metric, measured)}
    ratios = {metric: head for metric, head in RATIOS.items() if _belongs(metric, measured)}
    made = Table("plan", *columns.values(), *ratios.values(), box=None, title=title)
    for trial in trials:
        cells = [_cell(values, trial, metric) for metric in columns]
        shares = (ratio(values, trial, trials[0], metric) for metric in ratios)
        made.add_row(
            trial.partition("@")[0], *cells, *("" if share is None else f"{share:.3f}" for share in shares)
        )
    return made


Rounds = Mapping[tuple[str, str], Mapping[int, Row]]
"""(trial, metric) -> seed of the round -> row, of the model as a whole."""


def rounds_of(rows: Sequence[Row]) -> Rounds:
    """Sort the rows of a race."""
    found: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        found.setdefault((row.trial, row.metric), {})[row.seed] = row
    return found


def _belongs(metric: str, measured: Set[str]) -> bool:
    """Return whether a table has a column for a metric: of the two kinds of memory, the measured one."""
    return metric in measured or not metric.endswith(PEAKS)


def ratio(values: Rounds, trial: str, to: str, metric: str) -> float | None:
    """Return the median over the rounds of a trial's number over another's; None if a round lacks one."""
    own, other = values.get((trial, metric), {}), values.get((to, metric), {})
    shares = [own[seed].value / other[seed].value for seed in own if seed in other]
    return median(shares) if shares else None


def _cell(values: Rounds, trial: str, metric: str) -> str:
    """Write a number down: the median of the rounds, and the larger of the spreads in and between them."""
    found = list(values.get((trial, metric), {}).values())
    if not found:
        kind = "inference" if metric.startswith("inference_") else "train"
        return "out of memory" if (trial, f"{kind}_out_of_memory") in values else ""
    numbers = [row.value for row in found]
    spreads = [row.half_iqr60 for row in found if row.n > 1 and row.half_iqr60 == row.half_iqr60]
    if len(numbers) > 1:
        spreads.append((max(numbers) - min(numbers)) / 2)
    spread = f" ± {max(spreads):.2g}" if spreads else ""
    return f"{median(numbers):.4g}{spread}"


def parts_table(rows: Sequence[Row]) -> Table:
    """Return the forward time of each module of the model, a column per plan and mode."""
    times: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        metric, _, module = row.metric.partition("/")
        if metric.endswith(MODULE_TIME):
            times.setdefault((row.trial, metric, module), []).append(row.value)
    columns = list(dict.fromkeys((trial, metric) for trial, metric, _ in times))
    made = Table(
        "module, forward ms",
        *(f"{trial.partition('@')[0]} {metric.removesuffix(MODULE_TIME)}" for trial, metric in columns),
        box=None,
    )
    for module in dict.fromkeys(module for *_, module in times):
        cells = (times.get((*column, module)) for column in columns)
        made.add_row(module, *("" if ms is None else f"{median(ms):.2f}" for ms in cells))
    return made


def _look_closer(
    bench: Any, plans: Mapping[str, Plan | None], arguments: Namespace, console: Console
) -> None:
    """Print the kernels of one step, and the waits, of every plan."""
    from pipeline.metrics.profiling import kernel_table, waits
    from pipeline.training.benchmark import steps_of

    for name, plan in plans.items():
        for kind, step, cuda in steps_of(bench, plan):
            step()
            step()  # lazy initialisation and autotuning
            if arguments.profile:
                console.print(f"{name}, {kind}")
                print(kernel_table(step, cuda))
            if arguments.waits and cuda:
                console.print(f"{name}, {kind}: the host waits at")
                for place, times in waits(step):
                    console.print(f"  {times:3d} x {place}", highlight=False, soft_wrap=True)
