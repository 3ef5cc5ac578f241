"""Times the full-size models by the stopwatch, with made-up frames and fresh weights, plan by plan.

    python docs/studies/stopwatch/measure.py r50 vov --seconds 150 --out /tmp/stopwatch

It times a model under the plans that `biaswise study time r50_waves` would time, until every price is known
to half a per cent of a step or the seconds are over, and prints the table. Rows go to OUT/<model>/stopwatch.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from experiments.recipes.mini import demo
from experiments.recipes.nuscenes import r50_waves, vov_waves
from experiments.recipes.recipe import Recipe
from experiments.reporting.tables.stopwatch import stopwatch_table, timed_prices
from experiments.study.price_run import plans_of, show_prices
from pipeline.detector.build import load_config
from pipeline.detector.precision import runs_autocast
from pipeline.metrics.rows import Row, read_rows
from pipeline.metrics.timing import device_name
from pipeline.metrics.versions import commit, versions
from pipeline.runtime.determinism import deterministic
from pipeline.training.benchmark import (
    BenchmarkSettings,
    fresh_model,
    joined,
    made_up_frames,
    train_step_of,
)
from pipeline.training.stopwatch import rounds_of
from pipeline.training.stopwatch_rounds import Start, Until, keep_rounds
from pipeline.training.timed_model import TimedModel, TimedModelSettings

MODELS = {"r50": (r50_waves, 4), "vov": (vov_waves, 2), "mini": (demo, 2)}
"""Name -> study whose plans are timed, samples per training step."""

WANTED = 0.5
"""Half-width of every price, per cent of a step, at which the stopwatch stops."""


def timed_model(bench: BenchmarkSettings, num_plans: int) -> TimedModel:
    """Build a model of a config with made-up frames."""
    device = torch.device(bench.device)
    amp = runs_autocast(load_config(bench.config, bench.overrides).optim_wrapper, bench.device)
    deterministic(device, threads=1)
    model = fresh_model(bench, amp).to(device)
    frames = made_up_frames(bench, device)
    step = train_step_of(bench, model, amp)
    timed = TimedModelSettings(num_plans, amp, bench.cuda_graphs, bench.seed)
    return TimedModel(step, joined(frames[: bench.batch]), frames[0], timed)


def measure(recipe: Recipe, batch: int, seconds: float, folder: Path, console: Console) -> None:
    """Time the model of a study and print its prices."""
    assert recipe.rule is not None  # these studies have one
    rule, device = recipe.rule, "cuda" if torch.cuda.is_available() else "cpu"
    config = recipe.trials[0].config
    bench = BenchmarkSettings(config, device, batch=batch, frames=batch, overrides=recipe.trials[0].overrides)
    plans = plans_of(recipe)
    begun = time.monotonic()
    timed = timed_model(bench, len(plans))
    console.print(f"{config}, batch {batch}, {len(plans)} plans; built in {time.monotonic() - begun:.0f} s")
    common = Row(
        recipe.name,
        "stopwatch",
        plan="",
        metric="",
        unit="",
        value=0.0,
        device=device_name(timed.device),
        versions=versions(),
        commit=commit(),
        recipe_digest=recipe.digest,
    )

    def enough(rows: Sequence[Row]) -> bool:
        lines = stopwatch_table(timed_prices(rows, recipe.sites, rule), rule).lines
        sites = lines[: 1 + len(recipe.sites)]  # without the line of a bias everywhere
        return max(float(line[i] or 0) for line in sites for i in (2, 4)) <= WANTED

    begun = time.monotonic()
    path = folder / "stopwatch" / "rows.jsonl"
    reason = keep_rounds(
        lambda rows: rounds_of(timed, plans, common, Start.after(rows)), path, Until(seconds, enough)
    )
    console.print(f"{reason} after {time.monotonic() - begun:.0f} s, torch {torch.__version__}")
    show_prices(read_rows(path), recipe, console)


def main() -> None:
    """Run the models that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", choices=sorted(MODELS))
    parser.add_argument("--seconds", type=float, default=150.0, help="for each model, warm-up included")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    console = Console(width=160)
    for name in arguments.models:
        make, batch = MODELS[name]
        measure(make(), batch, arguments.seconds, arguments.out / name, console)


if __name__ == "__main__":
    main()
