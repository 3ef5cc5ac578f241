"""``biaswise demo`` and ``biaswise study``: run studies from first check to report."""

import shutil
from argparse import Namespace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.recipes.recipe import Recipe
from experiments.recipes.registry import RECIPES, recipe
from experiments.storage.remote_study import download_study
from experiments.storage.study_folder import StudyError, StudyFolder, read_json

ROOT = Path(__file__).parents[2]
"""Project root."""


def demo(arguments: Namespace) -> int:
    """Run the demo study and put its report where one looks first."""
    if Path.cwd() != ROOT:
        raise StudyError(
            f"the demo writes data, runs, mlflow.db and report.html into the project; cd {ROOT} first"
        )
    console = Console()
    chosen = recipe("demo")
    code = _conduct(chosen, arguments, console)
    page = Path(arguments.runs) / chosen.name / "report.html"
    if page.exists():
        shutil.copyfile(page, ROOT / "report.html")
        console.print("The report is also in report.html; `biaswise ui` shows every trial in MLflow.")
    return code


def run(arguments: Namespace) -> int:
    """Run a study."""
    return _conduct(recipe(arguments.recipe), arguments, Console())


def resume(arguments: Namespace) -> int:
    """Go on with a study that has begun."""
    chosen = recipe(arguments.recipe)
    folder = Path(arguments.runs) / chosen.name
    download_study(arguments.storage, folder)
    if not (folder / "study.json").exists():
        raise StudyError(f"{folder}: nothing to resume; start with `biaswise study run {chosen.name}`")
    return _conduct(chosen, arguments, Console())


def status(arguments: Namespace) -> int:
    """Show the state of every trial; 1 if one failed."""
    chosen = recipe(arguments.recipe)
    folder = StudyFolder(Path(arguments.runs) / chosen.name)
    download_study(arguments.storage, folder.path)
    table = Table("trial", "state", box=None)
    failed = 0
    for name in chosen.named_trials():
        state = folder.state(name)
        failed += state == TrialState.FAILED
        table.add_row(name, f"{state}: {folder.failure(name)}" if folder.failure(name) else state)
    console = Console()
    console.print(table)
    waves = folder.path / "interim_analyses.json"
    if waves.exists():
        kept = read_json(waves)
        latest = kept.get("ended") or kept["waves"][-1]
        console.print(latest["reason"], highlight=False, markup=False, soft_wrap=True)
    return 1 if failed else 0


def listing(arguments: Namespace) -> int:
    """List the recipes."""
    table = Table("recipe", "question", "cost", box=None, padding=(0, 2, 0, 0))
    for name in RECIPES:
        found = recipe(name)
        table.add_row(name, found.question, found.cost)
    Console().print(table)
    return 0


def _conduct(chosen: Recipe, arguments: Namespace, console: Console) -> int:
    """Run a study from the first check to the report; return the exit code."""
    from experiments.study.run_study import (  # loads Ray and torch, which lists and states need not
        RunOptions,
        run_study,
    )

    if arguments.gpus_per_trial is not None:
        chosen = chosen.with_workers(arguments.gpus_per_trial)
    options = RunOptions(
        runs=Path(arguments.runs),
        concurrent=arguments.concurrent,
        probing=arguments.probe,
        trials=arguments.trials,
        gpu_hours=arguments.gpu_hours,
        confirming=not arguments.no_confirm,
        tracking=not arguments.no_sync,
        patience_s=arguments.patience,
        storage=arguments.storage,
    )
    return 0 if run_study(chosen, options, console).complete else 1
