"""``biaswise demo`` and ``biaswise study``: run studies from first check to report."""

import shutil
from argparse import Namespace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.folder import DONE, StudyError, StudyFolder
from experiments.recipes import RECIPES, Recipe, recipe

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
    if not (folder / "study.json").exists():
        raise StudyError(f"{folder}: nothing to resume; start with `biaswise study run {chosen.name}`")
    return _conduct(chosen, arguments, Console())


def status(arguments: Namespace) -> int:
    """Show the state of every trial; 1 if one failed."""
    chosen = recipe(arguments.recipe)
    folder = StudyFolder(Path(arguments.runs) / chosen.name)
    table = Table("trial", "state", box=None)
    failed = 0
    for name in chosen.named_trials():
        state = folder.state(name)
        failed += state == "failed"
        table.add_row(name, f"{state}: {folder.failure(name)}" if state == "failed" else state)
    Console().print(table)
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
    """Check, run, judge, report, send; return the exit code."""
    from experiments.preflight import check_data, check_models, check_trials, digest_inputs, make_worlds
    from experiments.study import run_trials

    if arguments.concurrent is not None and arguments.concurrent < 1:
        raise StudyError(f"--concurrent {arguments.concurrent}: expected 1 or more")
    folder = StudyFolder(Path(arguments.runs).resolve() / chosen.name)
    console.print(f"{chosen.question}\n{chosen.cost}; folder {folder.path}", highlight=False, soft_wrap=True)
    folder.claim(chosen, digest_inputs(chosen))
    make_worlds(chosen.worlds, console)
    check_trials(chosen, folder)
    with folder.lock():
        if any(folder.state(name) != DONE for name in chosen.named_trials()):
            with console.status("checking data, plans and weights"):
                check_data(chosen)
                check_models(chosen)
        outcome = run_trials(chosen, folder, console, arguments.concurrent, tracking=not arguments.no_sync)
        if not outcome.ran:
            console.print("every trial is done already")
        if outcome.done:
            _report(folder, console, tracking=not arguments.no_sync)
    for name, reason in outcome.failed.items():
        console.print(f"failed: {name}: {reason}", style="red", markup=False, soft_wrap=True)
        console.print(f"  traceback in {folder.trial(name) / 'FAILED.json'}", soft_wrap=True)
    if outcome.unfinished:
        console.print(f"{len(outcome.unfinished)} trials are unfinished; the same command goes on with them")
    return 0 if outcome.complete else 1


def _report(folder: StudyFolder, console: Console, tracking: bool) -> None:
    from experiments.commands.view import show_report

    show_report(folder.path, console)
    if tracking:
        from pipeline.tracking import sync

        sent = sync(folder.path)
        if sent.warning:
            console.print(f"warning: {sent.warning}", style="yellow", markup=False, soft_wrap=True)
        else:
            console.print(f"MLflow: {sent.trials} trials in {sent.uri}", highlight=False, soft_wrap=True)
