"""``biaswise report``, ``sync`` and ``ui``: look at what studies found."""

from argparse import Namespace
from pathlib import Path

from rich.console import Console

from experiments.storage.remote_study import download_study
from experiments.storage.study_folder import StudyError


def report(arguments: Namespace) -> int:
    """Print the verdicts and write the report."""
    from experiments.study.final_report import show_report  # the figures' library costs half a second

    download_study(arguments.storage, Path(arguments.runs) / arguments.study)
    show_report(_folder(arguments.study, arguments.runs), Console())
    return 0


def sync(arguments: Namespace) -> int:
    """Send unsent rows; 1 if some stay behind."""
    runs = Path(arguments.runs)
    if arguments.storage and not arguments.study:
        raise StudyError("sync --storage: name the studies; a bucket is not searched for them")
    for name in arguments.study:
        download_study(arguments.storage, runs / name)
    names = arguments.study or sorted(path.parent.name for path in runs.glob("*/study.json"))
    if not names:
        raise StudyError(f"{runs}: no study here; run one, or name --runs")
    from pipeline.tracking.mlflow_sync import sync as send

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
    from pipeline.tracking.mlflow_server import start_ui

    console, host = Console(), arguments.host
    if not 0 < arguments.port < 65536:
        raise StudyError(f"--port {arguments.port}: expected 1 to 65535")
    if host not in ("127.0.0.1", "localhost", "::1"):
        console.print(
            f"warning: --host {host} lets everybody who reaches this machine read and change the runs; "
            "there is no password",
            style="yellow",
            soft_wrap=True,
        )
    console.print(f"MLflow on http://{host}:{arguments.port}, Ctrl-C ends it", highlight=False)
    return start_ui(host, arguments.port)


def _folder(study: str, runs: str) -> Path:
    for folder in (Path(runs) / study, Path(study)):
        if (folder / "study.json").exists():
            return folder
    raise StudyError(
        f"no study {study!r}: neither {Path(runs) / study} nor {study} holds a study.json; "
        "`biaswise study run` makes one"
    )
