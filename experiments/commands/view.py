"""``biaswise report``, ``sync`` and ``ui``: look at what studies found."""

from argparse import Namespace
from pathlib import Path

from rich.console import Console

from experiments.folder import StudyError


def report(arguments: Namespace) -> int:
    """Print the verdicts and write the report."""
    folder = _folder(arguments.study, arguments.runs)
    from experiments.report import print_report, write_report

    print_report(write_report(folder))
    return 0


def sync(arguments: Namespace) -> int:
    """Send unsent rows; 1 if some stay behind."""
    runs = Path(arguments.runs)
    names = arguments.study or sorted(path.parent.name for path in runs.glob("*/study.json"))
    if not names:
        raise StudyError(f"{runs}: no study here; run one, or name --runs")
    from pipeline.tracking import sync as send

    console, behind = Console(), 0
    for name in names:
        found = send(_folder(name, arguments.runs))
        console.print(
            f"{name}: {found.sent} rows of {found.trials} trials sent to {found.uri}", soft_wrap=True
        )
        if found.warning:
            behind += 1
            console.print(f"warning: {found.warning}", style="yellow", markup=False, soft_wrap=True)
    return 1 if behind else 0


def ui(arguments: Namespace) -> int:
    """Serve the MLflow UI until interrupted."""
    from pipeline.tracking import start_ui

    Console().print(f"MLflow on http://127.0.0.1:{arguments.port}, Ctrl-C ends it", highlight=False)
    return start_ui(port=arguments.port)


def _folder(study: str, runs: str) -> Path:
    for folder in (Path(runs) / study, Path(study)):
        if (folder / "study.json").exists():
            return folder
    raise StudyError(
        f"no study {study!r}: neither {Path(runs) / study} nor {study} holds a study.json; "
        "`biaswise study run` makes one"
    )
