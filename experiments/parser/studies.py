"""The words of the commands that run studies, here or on a cluster, and show what came out."""

import argparse

from experiments.parser.commands import Commands, command, group
from pipeline.storage.paths import default_runs_dir


def add_demo(commands: Commands) -> None:
    """Declare ``demo``."""
    text = "generate data, ablate the layers on this machine, print verdicts, write report.html"
    demo = command(commands, "demo", "study:demo", text, "demo")
    _running(demo)


def add_study(commands: Commands) -> None:
    """Declare ``study`` and ``screen``."""
    study = group(commands, "study", "run a recipe's trials under Ray Tune and judge them")
    text = "run a study; what is done is skipped"
    run = command(study, "run", "study:run", text, "study run demo --concurrent 1")
    resume = command(
        study, "resume", "study:resume", "go on with a study after any crash", "study resume demo"
    )
    for parser in (run, resume):
        parser.add_argument("recipe", help="a name that `biaswise study list` shows")
        _running(parser)
    text = "show which trials are done, failed, partial or pending"
    status = command(study, "status", "study:status", text, "study status demo")
    status.add_argument("recipe", help="a name that `biaswise study list` shows")
    status.add_argument("--runs", default=default_runs_dir(), help="folder of the studies (%(default)s)")
    _storage(status)
    text = "train once with every layer biased, switch layers off at inference, rank them"
    screen = command(commands, "screen", "screen:screen", text, "screen demo")
    screen.add_argument("recipe", help="a name that `biaswise study list` shows")
    screen.add_argument("--runs", default=default_runs_dir(), help="folder of the studies (%(default)s)")
    screen.add_argument("--conditions", default="", help="names, comma-separated (those of the recipe)")
    command(study, "list", "study:listing", "list the recipes, their questions and their costs", "study list")
    text = "judge simulated studies of known truth; say how often the verdicts are right"
    truth = command(study, "calibrate", "calibrate:calibrate", text, "study calibrate --studies 100")
    truth.add_argument("--studies", type=int, default=1000, help="per planted truth (%(default)s)")
    truth.add_argument("--out", default="docs/studies/calibration", help="folder to write to (%(default)s)")


def _storage(parser: argparse.ArgumentParser) -> None:
    text = (
        "where studies are kept as well: s3://bucket/prefix, gs://bucket/prefix (where the study was before)"
    )
    parser.add_argument("--storage", default="", metavar="URI", help=text)


def _running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", default=default_runs_dir(), help="folder of the studies (%(default)s)")
    _storage(parser)
    parser.add_argument("--concurrent", type=int, help="trials at once (as the recipe says)")
    parser.add_argument("--probe", action="store_true", help="measure how many trials at once are best")
    parser.add_argument("--gpus-per-trial", type=int, metavar="N", help="DDP workers of each trial")
    parser.add_argument("--trials", type=int, metavar="N", help="most trials that may run (all)")
    parser.add_argument(
        "--gpu-hours", type=float, metavar="H", help="most GPU hours of all trials (no limit)"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=600,
        metavar="S",
        help="seconds without a step after which a trial counts as hung and is started again, or 10 times "
        "its longest step if that is more; 0 waits for ever (%(default)s)",
    )
    parser.add_argument("--no-confirm", action="store_true", help="train nothing with fresh seeds in the end")
    parser.add_argument("--no-sync", action="store_true", help="send nothing to MLflow")


def add_view(commands: Commands) -> None:
    """Declare ``report``, ``sync`` and ``ui``."""
    text = "print a study's verdicts and write its report, from its rows alone"
    report = command(commands, "report", "view:report", text, "report demo")
    report.add_argument("study", help="name of a study, or its folder")
    report.add_argument("--runs", default=default_runs_dir(), help="folder of the studies (%(default)s)")
    _storage(report)
    sync = command(commands, "sync", "view:sync", "send rows to MLflow that it lacks", "sync demo")
    sync.add_argument("study", nargs="*", help="names or folders of studies (all)")
    sync.add_argument("--runs", default=default_runs_dir(), help="folder of the studies (%(default)s)")
    _storage(sync)
    ui = command(commands, "ui", "view:ui", "start the MLflow UI on 127.0.0.1", "ui --port 5000")
    ui.add_argument("--port", type=int, default=5000, help="(%(default)s)")
    ui.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine alone)"
    )


def add_cluster(commands: Commands) -> None:
    """Declare ``submit`` and ``cluster``."""
    text = "run a study on a Ray cluster as a job; returns its exit code, 130 if it was stopped"
    submit = command(commands, "submit", "submit:submit", text, "submit demo --address http://127.0.0.1:8265")
    submit.add_argument("recipe", help="a name that `biaswise study list` shows")
    submit.add_argument("--address", help="job server (RAY_API_SERVER_ADDRESS, or port 8265 of this machine)")
    submit.add_argument("--home", default="", help="BIASWISE_HOME of the job (as the cluster has it)")
    submit.add_argument("--concurrent", type=int, help="trials at once (as the recipe says)")
    _storage(submit)
    submit.add_argument("--no-sync", action="store_true", help="send nothing to MLflow")
    submit.add_argument("--no-wait", action="store_true", help="do not wait for its end")
    cluster = group(commands, "cluster", "check cluster files; watch over spot machines")
    text = "check cluster.yaml and ray-job.yaml without a cloud"
    check = command(cluster, "check", "cluster:check", text, "cluster check cluster.yaml")
    check.add_argument("file", nargs="*", help="files (cluster.yaml and ray-job.yaml)")
    text = "drain this machine's Ray node when the cloud gives notice; ends at once if it is no spot machine"
    watch = command(cluster, "watch", "cluster:watch", text, "cluster watch --address 10.0.0.5:6379")
    watch.add_argument("--address", required=True, help="host:port of the cluster")
    watch.add_argument("--node-id", default="", help="Ray's id of the node (the one on this machine)")
