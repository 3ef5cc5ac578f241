"""``biaswise demo`` and ``biaswise study run``, ``resume``, ``status``, ``list``."""

import shlex
import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.options import Command, OptionError, add_runs_dir, add_storage
from experiments.cli.study.chosen import add_study, chosen_study, kept_by_jobs
from experiments.cli.study.run_options import add_run_options

if TYPE_CHECKING:
    from experiments.recipes.recipe import Recipe
    from experiments.storage.study_folder import StudyFolder
    from experiments.terminal import Terminal


class RunDemo(Command):
    """Run the demo study, and copy its report into the current folder."""

    name = "demo"
    help = "generate data, ablate the layers on this machine, print verdicts, write report.html"
    example = "demo"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_runs_dir(parser)
        add_run_options(parser)

    def run(self, arguments: Namespace) -> int:
        """Return 1 if a trial failed or is missing."""
        from experiments.terminal import Terminal

        console = Terminal()
        arguments.study = "demo"
        demo = chosen_study(arguments)
        code = _run(demo, arguments, console)
        page = Path(arguments.runs_dir) / demo.name / "report.html"
        if page.exists():
            shutil.copyfile(page, "report.html")
            console.print("The report is also in report.html; `biaswise ui` shows every trial in MLflow.")
        return code


class RunStudy(Command):
    """Run a study from the first check to the report."""

    name = "run"
    help = "run a study; what is done is skipped"
    example = "study run demo --concurrent 1"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_study(parser)
        add_runs_dir(parser)
        add_run_options(parser)

    def run(self, arguments: Namespace) -> int:
        """Return 1 if a trial failed or is missing."""
        from experiments.terminal import Terminal

        return _run(chosen_study(arguments), arguments, Terminal())


class ResumeStudy(Command):
    """Go on with a study that has begun."""

    name = "resume"
    help = "go on with a study after any crash"
    example = "study resume demo"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_study(parser)
        add_runs_dir(parser)
        add_run_options(parser)

    def run(self, arguments: Namespace) -> int:
        """Return 1 if a trial failed or is missing."""
        from experiments.storage.remote_study import download_study
        from experiments.terminal import Terminal

        chosen = chosen_study(arguments)
        folder = Path(arguments.runs_dir) / chosen.name
        download_study(arguments.storage, folder)
        if not (folder / "study.json").exists():
            start = f"start with `biaswise study run {chosen.word}`"
            advice = kept_by_jobs("resume", arguments.study, folder) or start
            raise OptionError(f"{folder}: nothing to resume; {advice}")
        return _run(chosen, arguments, Terminal())


class ShowStatus(Command):
    """Show the state of every trial."""

    name = "status"
    help = "show which trials are complete, failed, running, interrupted or pending"
    example = "study status demo"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_study(parser)
        add_runs_dir(parser)
        add_storage(parser)

    def run(self, arguments: Namespace) -> int:
        """Return 1 if a trial failed."""
        from rich.table import Table

        from experiments.storage.interim_analyses import read_interim_analyses
        from experiments.storage.remote_study import download_study
        from experiments.storage.study_folder import StudyFolder
        from experiments.terminal import Terminal
        from pipeline.storage.trial_status import TrialState
        from pipeline.tracking.study_reader import read_end

        chosen = chosen_study(arguments)
        folder = StudyFolder(Path(arguments.runs_dir) / chosen.name)
        if arguments.storage:  # not the URI that the folder remembers: it may come from somebody else
            download_study(arguments.storage, folder.path)
        table = Table("trial", "state", box=None)
        broken_off = read_end(folder.path) is not None and not folder.runs_here()
        failed = 0
        for name in folder.trial_names() or chosen.named_trials():
            state = folder.state(name)
            reason = folder.failure(name)
            failed += bool(reason)
            word = "interrupted" if broken_off and state == TrialState.RUNNING else state.lower()
            table.add_row(name, f"{word}: {reason}" if reason else word)
        console = Terminal()
        _say_where(folder, arguments.study, console)
        console.print(table)
        waves = folder.path / "interim_analyses.json"
        if waves.exists():
            kept = read_interim_analyses(waves)
            latest = kept.get("ended") or next(iter(kept["waves"][-1:]), {"reason": "No wave has begun."})
            console.print(latest["reason"], highlight=False, soft_wrap=True)
        if folder.has_begun and not arguments.storage:  # a copy does not tell where the study runs
            console.print(_whereabouts(folder, chosen.word), highlight=False, soft_wrap=True)
        return 1 if failed else 0


def _say_where(folder: "StudyFolder", study: str, console: "Terminal") -> None:
    """Print which folder is looked at, and whether a study has begun there."""
    path, begun = folder.path.resolve(), folder.has_begun
    text = f"folder {path}" if begun else f"no study has begun in {path}"
    advice = "" if begun else kept_by_jobs("status", study, path)
    console.print("; ".join(filter(None, (text, advice))), highlight=False, soft_wrap=True)


class ListStudies(Command):
    """List the recipes, their questions and their costs."""

    name = "list"
    help = "list the recipes, their questions, and the hours, GPU hours and GB that they take"
    example = "study list"

    def run(self, arguments: Namespace) -> int:
        """Return 0."""
        from rich.table import Table

        from experiments.recipes.cost import COMPUTED, takes
        from experiments.recipes.registry import RECIPES, recipe
        from experiments.terminal import Terminal

        table = Table("recipe", "question, and what it takes", box=None, padding=(0, 2, 0, 0))
        console = Terminal()
        for name in RECIPES:
            listed = recipe(name)
            table.add_row(name, f"{listed.question}\n{takes(listed)}")
        console.print(table)
        console.print(COMPUTED, highlight=False, soft_wrap=True)
        return 0


def _whereabouts(folder: "StudyFolder", word: str) -> str:
    """Return a sentence that says whether a study runs, and what MLflow shows of one that was killed."""
    from pipeline.tracking.study_reader import read_end, study_state

    if folder.runs_here():
        return "A process of this machine runs it."
    if study_state(folder.path) == "FINISHED":
        return "It is finished."
    goes_on = (
        f"No process of this machine runs it; `biaswise study resume {shlex.quote(word)}` goes on with it."
    )
    killed = " If none of another machine does, it was killed, and MLflow shows it as running until then."
    return goes_on + (killed if read_end(folder.path) is None else "")


def _run(chosen: "Recipe", arguments: Namespace, console: "Terminal") -> int:
    """Run a study; return the exit code."""
    from experiments.study.run_study import RunOptions, run_study

    options = RunOptions(
        runs_dir=Path(arguments.runs_dir),
        concurrent=arguments.concurrent,
        arms_per_worker=arguments.arms_per_worker,
        auto_concurrency=arguments.auto_concurrency,
        max_trials=arguments.max_trials,
        max_gpu_hours=arguments.gpu_hours,
        confirmation=not arguments.skip_confirmation,
        tracking=not arguments.no_mlflow,
        hang_timeout_s=arguments.hang_timeout,
        storage=arguments.storage,
        underpowered=arguments.underpowered,
        register=not arguments.no_register,
    )
    return 0 if run_study(chosen, options, console).complete else 1
