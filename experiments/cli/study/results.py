"""``biaswise study report`` and ``study sync``: what studies measured, on paper and in MLflow."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.options import Command, OptionError, add_runs_dir, add_storage
from experiments.cli.study.chosen import kept_by_jobs, name_of, overridden_study

if TYPE_CHECKING:
    from experiments.terminal import Terminal


class ReportStudy(Command):
    """Print the verdicts and write the report."""

    name = "report"
    help = "print a study's verdicts and write its report, from its rows alone"
    example = "study report demo"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("study", help="name of a study, its folder, or its study file (run as code)")
        parser.add_argument(
            "--figures", action="store_true", help="also draw the figures and write report.html with them"
        )
        parser.add_argument(
            "--plan-config",
            action="store_true",
            help="also write the recommended plan as a config, recommended.py; this runs the config that the "
            "study's trials name, as code: not for a study that you do not trust",
        )
        add_runs_dir(parser)
        add_storage(parser)

    def run(self, arguments: Namespace) -> int:
        """Return 1 if the config was asked for and could not be printed."""
        # A report's matrices are small; threads that wait for larger ones take a third of its CPU time.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from experiments.reporting.report import CONFIG
        from experiments.study.final_report import show_report
        from experiments.terminal import Terminal

        runs = Path(arguments.runs_dir)
        name = name_of(arguments.study)
        _download(arguments.storage, _place(name, runs))
        folder, console = _find_study(name, runs, "report", arguments.study), Terminal()
        if name != arguments.study:
            _judge_by(arguments.study, folder, console)
        show_report(folder, console, figures=arguments.figures, config=arguments.plan_config)
        return int(arguments.plan_config and not (folder / CONFIG).exists())


class SyncStudies(Command):
    """Send unsent rows to MLflow."""

    name = "sync"
    help = "send rows to MLflow that it lacks"
    example = "study sync demo"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("study", nargs="*", help="names, folders or study files of studies (all)")
        add_runs_dir(parser)
        add_storage(parser)

    def run(self, arguments: Namespace) -> int:
        """Return 1 if some rows could not be sent."""
        from experiments.terminal import Terminal

        runs = Path(arguments.runs_dir)
        if arguments.storage and not arguments.study:
            raise OptionError("sync --storage: name the studies; a bucket is not searched for them")
        names = {name_of(study): study for study in arguments.study}
        for name in names:
            _download(arguments.storage, _place(name, runs))
        names = names or {path.parent.name: path.parent.name for path in sorted(runs.glob("*/study.json"))}
        if not names:
            raise OptionError(f"{runs}: no study here; run one, or name --runs-dir")
        from pipeline.tracking.mlflow_sync import sync

        console, unsent = Terminal(), 0
        for name, study in names.items():
            report = sync(_find_study(name, runs, "sync", study))
            console.print(
                f"{name}: {report.sent} rows of {report.trials} trials sent to {report.uri}", soft_wrap=True
            )
            if report.link:
                console.print(f"  {report.table}", highlight=False, soft_wrap=True)
            if report.warning:
                unsent += 1
                console.print(f"warning: {report.warning}", style="yellow", soft_wrap=True)
        return 1 if unsent else 0


def _judge_by(study: str, folder: Path, console: "Terminal") -> None:
    """Let the rule of a study file judge, if it is all that has changed in the file."""
    from experiments.storage.corrected_rule import as_begun, note_rule
    from experiments.storage.study_folder import StudyFolder

    begun = as_begun(folder, overridden_study(study, StudyFolder(folder).overridden))
    if begun is not None and begun.rule is not None:
        note_rule(folder, begun.rule)
    else:
        text = f"{study} is no longer the study that ran; the report is by {folder / 'study.json'}"
        console.print(text, style="yellow", highlight=False, soft_wrap=True)


def _download(storage: str, folder: Path) -> None:
    """Download what is newer at a URI, if one is given.

    The URI that the folder remembers is not used: the folder may come from somebody else.
    """
    if storage:
        from experiments.storage.remote_study import download_study  # imports pyarrow

        download_study(storage, folder)


def _place(name: str, runs: Path) -> Path:
    """Return the folder of a study that is given by its name or its folder; it need not be there yet."""
    places = (runs / name, Path(name))
    return next((place for place in places if (place / "study.json").exists()), places[0])


def _find_study(name: str, runs: Path, command: str, study: str) -> Path:
    """Return the folder of a study, given by its name or its folder; ``command study`` is what was typed."""
    if ((folder := _place(name, runs)) / "study.json").exists():
        return folder
    advice = kept_by_jobs(command, study, runs / name) or "`biaswise study run` makes one"
    raise OptionError(f"no study {name!r}: neither {runs / name} nor {name} holds a study.json; {advice}")
