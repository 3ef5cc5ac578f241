"""``biaswise throughput``: how fast a config trains and detects under several plans, at its real size."""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TypeAlias

from experiments.cli.options import Command, OptionError, add_cfg_options, add_config, read_cfg_options

if TYPE_CHECKING:
    from rich.table import Table

    from experiments.terminal import Terminal
    from pipeline.config.plan import Plan
    from pipeline.metrics.rows import Row
    from pipeline.training.benchmark import BenchmarkSettings

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


class Throughput(Command):
    """Time a config under several plans."""

    name = "throughput"
    goes_on = False
    help = "time training and inference of a config under several plans, on generated frames of its size"
    example = "throughput experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py --plans plain rects mask"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_config(parser)
        parser.add_argument(
            "--plans",
            nargs="+",
            default=["config"],
            metavar="PLAN",
            help="config: what it says; of models with AQR plain, dense, rects, mask, dense_mask; "
            "or 'NAME:pattern=bias/impl;...'",
        )
        parser.add_argument("--steps", type=int, default=40, help="training steps, 0 for none (%(default)s)")
        parser.add_argument(
            "--calls", type=int, default=50, help="detections timed, 0 for none (%(default)s)"
        )
        parser.add_argument(
            "--rounds",
            type=int,
            default=1,
            help="times that all plans run in turn; ratios within a round (%(default)s)",
        )
        parser.add_argument("--batch", type=int, default=1, help="samples per training step (%(default)s)")
        parser.add_argument(
            "--boxes", type=int, default=45, help="boxes per frame; 83 make 1730 queries (%(default)s)"
        )
        parser.add_argument("--memory-gib", type=float, help="use no more of the GPU than this")
        parser.add_argument(
            "--per-module", action="store_true", help="forward time of each module of the model too"
        )
        parser.add_argument(
            "--profile", action="store_true", help="the kernels of one step and one detection too"
        )
        parser.add_argument(
            "--profile-syncs", action="store_true", help="where the host waits for the GPU too"
        )
        parser.add_argument("--no-fold", action="store_true", help="detect without folding batch norms")
        parser.add_argument("--no-graph", action="store_true", help="train and detect without CUDA graphs")
        add_cfg_options(parser)
        parser.add_argument("--device", choices=("cpu", "cuda"), help="(cuda if there is one)")
        parser.add_argument("--seed", type=int, default=0, help="of weights and frames (%(default)s)")
        parser.add_argument("--out", help="folder for the rows (runs/throughput/<config>_<time>)")

    def run(self, arguments: Namespace) -> int:
        """Return 0."""
        overrides = read_cfg_options(arguments)
        import torch

        from experiments.terminal import Terminal
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
            parts=arguments.per_module,
            rounds=arguments.rounds,
            overrides=overrides,
            seed=arguments.seed,
        )
        if arguments.memory_gib is not None:
            if not cuda or not arguments.memory_gib > 0:
                raise OptionError(f"--memory-gib {arguments.memory_gib:g}: expected GiB of a GPU, above 0")
            total = torch.cuda.get_device_properties(0).total_memory / 2**30
            torch.cuda.set_per_process_memory_fraction(min(1.0, arguments.memory_gib / total))
        plans = read_plans(arguments.plans, named_plans(cuda))
        console = Terminal()
        if not console.is_terminal:
            console.width = WIDTH
        folder = Path(arguments.out or f"runs/throughput/{Path(bench.config).stem}_{int(time.time())}")
        rows = run_benchmark(bench, plans, folder)
        console.print(table(rows))
        if arguments.per_module:
            console.print(module_table(rows))
        console.print(f"rows in {folder / 'rows.jsonl'}", highlight=False, soft_wrap=True)
        if arguments.profile or arguments.profile_syncs:
            _profile(bench, plans, arguments, console)
        return 0


def read_plans(words: Sequence[str], named: "Mapping[str, Plan]") -> "dict[str, Plan | None]":
    """Read ``--plans``: names, ``config`` for what the config says, or ``NAME:pattern=bias/impl;...``.

    Raises:
        OptionError: a name that no plan has, or two have.
        PlanError: a plan that cannot be read.
    """
    from pipeline.config.plan import Plan

    plans: dict[str, Plan | None] = {}
    for word in words:
        name, colon, text = word.partition(":")
        if name in plans:
            raise OptionError(f"--plans {word}: the name {name} is given twice")
        if colon:
            plans[name] = Plan.parse(text)
        elif name == "config":
            plans[name] = None
        elif name in named:
            plans[name] = named[name]
        else:
            raise OptionError(
                f"--plans {word}: expected one of config, {', '.join(named)}, or NAME:pattern=bias/impl;..."
            )
    return plans


def table(rows: "Sequence[Row]") -> "Table":
    """Return one line per plan; ratios are to the first plan in the same round, medians over the rounds."""
    from rich.table import Table

    trials = list(dict.fromkeys(row.trial for row in rows))
    title = trials[0].partition("@")[2] if trials else None
    values = rounds_of(rows)
    measured = {row.metric for row in rows}
    columns = {metric: head for metric, head in COLUMNS.items() if _has_column(metric, measured)}
    ratios = {metric: head for metric, head in RATIOS.items() if _has_column(metric, measured)}
    made = Table("plan", *columns.values(), *ratios.values(), box=None, title=title)
    for trial in trials:
        cells = [_cell(values, trial, metric) for metric in columns]
        shares = (ratio(values, trial, trials[0], metric) for metric in ratios)
        made.add_row(
            trial.partition("@")[0], *cells, *("" if share is None else f"{share:.3f}" for share in shares)
        )
    return made


Rounds: TypeAlias = "Mapping[tuple[str, str], Mapping[int, Row]]"
"""(trial, metric) -> seed of the round -> row."""


def rounds_of(rows: "Sequence[Row]") -> Rounds:
    """Sort the rows of a benchmark by trial, metric and round."""
    rounds: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        rounds.setdefault((row.trial, row.metric), {})[row.seed] = row
    return rounds


def _has_column(metric: str, measured: Set[str]) -> bool:
    """Return whether the table has a column for a metric: of the two kinds of memory, the measured one."""
    from pipeline.metrics.rows import PEAKS

    return metric in measured or not metric.endswith(PEAKS)


def ratio(values: Rounds, trial: str, to: str, metric: str) -> float | None:
    """Return the median over the rounds of a trial's number over another's; None if a round lacks one."""
    own, other = values.get((trial, metric), {}), values.get((to, metric), {})
    shares = [own[seed].value / other[seed].value for seed in own if seed in other]
    return median(shares) if shares else None


def _cell(values: Rounds, trial: str, metric: str) -> str:
    """Format the median of the rounds and the larger of the spreads within and between rounds."""
    rows = list(values.get((trial, metric), {}).values())
    if not rows:
        kind = "inference" if metric.startswith("inference_") else "train"
        return "out of memory" if (trial, f"{kind}_out_of_memory") in values else ""
    numbers = [row.value for row in rows]
    spreads = [row.half_iqr60 for row in rows if row.n > 1 and row.half_iqr60 == row.half_iqr60]
    if len(numbers) > 1:
        spreads.append((max(numbers) - min(numbers)) / 2)
    spread = f" ± {max(spreads):.2g}" if spreads else ""
    return f"{median(numbers):.4g}{spread}"


def module_table(rows: "Sequence[Row]") -> "Table":
    """Return the forward time of each module of the model, in ms, with a column per plan and mode."""
    from rich.table import Table

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


def _profile(
    bench: "BenchmarkSettings", plans: "Mapping[str, Plan | None]", arguments: Namespace, console: "Terminal"
) -> None:
    """Print the kernels of one step, and where the host waits, of every plan."""
    from pipeline.metrics.profiling import kernel_table, waits
    from pipeline.training.benchmark import steps_of

    for name, plan in plans.items():
        for kind, step, cuda in steps_of(bench, plan):
            step()
            step()  # lazy initialisation and autotuning
            if arguments.profile:
                console.print(f"{name}, {kind}")
                print(kernel_table(step, cuda))
            if arguments.profile_syncs and cuda:
                console.print(f"{name}, {kind}: the host waits at")
                for place, times in waits(step):
                    console.print(f"  {times:3d} x {place}", highlight=False, soft_wrap=True)
