"""The command line: ``biaswise ...`` or ``python -m experiments.cli ...``.

Here are only the words; what a command does is in ``experiments.commands`` and is imported when it
runs, so that help is instant. Exit codes: 0 done, 1 findings or failed trials, 2 wrong usage or input.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import TypeAlias

from pipeline.home import runs
from pipeline.refusal import is_refusal

DONE, FINDINGS, WRONG = 0, 1, 2
INTERRUPTED = 130  # what shells use for Ctrl-C: 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``biaswise``; None takes them from the process.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser(bench=words[:1] == ["bench"]).parse_args(words)
    module, _, function = arguments.run.partition(":")
    signal.signal(signal.SIGTERM, _leave)
    if "RAY_JOB_STOP_SIGNAL" in os.environ:  # a Ray started in the background passes on SIGINT ignored
        signal.signal(signal.SIGINT, _leave)
    try:
        return int(getattr(import_module(f"experiments.commands.{module}"), function)(arguments))
    except (ValueError, RuntimeError) as error:
        if not is_refusal(error):
            raise
        print(f"biaswise: error: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("biaswise: interrupted; what is done is kept, the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _leave(number: int, frame: FrameType | None) -> None:
    """End as on Ctrl-C, so that Ray and scratch folders are cleared away."""
    raise KeyboardInterrupt


def build_parser(bench: bool = False) -> argparse.ArgumentParser:
    """Return the parser of all commands.

    Args:
        bench: with the options of ``bench``, which are declared beside the benchmark and load torch.
    """
    parser = argparse.ArgumentParser(
        prog="biaswise",
        description="In which layers of a camera-LiDAR detector does bias-aware attention pay off, "
        "and which implementation should compute it there?",
        epilog="example: biaswise demo",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_data(commands)
    _add_operators(commands, bench)
    _add_config(commands)
    _add_throughput(commands)
    _add_trial(commands)
    _add_study(commands)
    _add_view(commands)
    _add_cluster(commands)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add(commands: Commands, name: str, run: str, text: str, example: str) -> argparse.ArgumentParser:
    """Add a command whose handler is ``module:function`` in ``experiments.commands``."""
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"example: biaswise {example}"
    )
    parser.set_defaults(run=run)
    return parser


def _group(commands: Commands, name: str, text: str) -> Commands:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def _add_demo(commands: Commands) -> None:
    text = "generate data, ablate the layers on this machine, print verdicts, write report.html"
    demo = _add(commands, "demo", "study:demo", text, "demo")
    _running(demo)


def _add_data(commands: Commands) -> None:
    data = _group(commands, "data", "make, convert and verify datasets")
    synth = _add(
        data,
        "synth",
        "data:synth",
        "generate a dataset in nuScenes layout",
        "data synth --root data/mini --seed 7",
    )
    synth.add_argument("--root", default="data/mini", help="folder to write to (%(default)s)")
    synth.add_argument("--seed", type=int, default=7, help="decides everything in it (%(default)s)")
    synth.add_argument("--version", default="v1.0-mini", help="name of the tables folder (%(default)s)")
    synth.add_argument("--frames", type=int, default=20, help="key frames per scene (%(default)s)")
    synth.add_argument(
        "--scenes",
        default="mini_train=8,mini_val=2",
        metavar="SPLIT=N,...",
        help="scenes per split (%(default)s)",
    )
    synth.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    synth.add_argument(
        "--rig",
        choices=("mini", "full"),
        default="mini",
        help="full: 1600 x 900 pixels, LiDAR at 20 Hz; mini: a quarter of it, key frames only (%(default)s)",
    )
    shard = _add(
        data,
        "shard",
        "data:shard",
        "convert a dataset to Parquet shards",
        "data shard data/mini --split mini_train --out data/mini_shards",
    )
    shard.add_argument("root", help="dataset in nuScenes layout")
    shard.add_argument("--version", default="v1.0-mini", help="name of the tables folder (%(default)s)")
    shard.add_argument("--split", action="append", required=True, help="devkit split; may be repeated")
    shard.add_argument("--out", required=True, help="folder or URI (s3://...) of the shards")
    _add_data_made(data)
    check = _add(
        data, "check", "data:check", "verify a dataset or shards, file by file", "data check data/mini"
    )
    check.add_argument("path", help="dataset in nuScenes layout, or a folder of shards")
    check.add_argument("--version", default="v1.0-mini", help="name of the tables folder (%(default)s)")


def _add_data_made(data: Commands) -> None:
    """Add the commands that make something of a split: pictures, an object database, an info file."""
    text = "draw augmented training samples with their boxes"
    example = "data draw data/full --config experiments/configs/cmt_voxel0100_r50_800x320_cbgs.py"
    draw = _add(data, "draw", "data:draw", text, example)
    draw.add_argument("--config", help="config whose train_pipeline is applied (nothing is)")
    draw.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="override a config key")
    draw.add_argument("--frames", type=int, default=4, help="how many, spread over the split (%(default)s)")
    draw.add_argument("--epoch", type=int, default=0, help="training epoch, from 0 (%(default)s)")
    draw.add_argument("--seed", type=int, default=0, help="decides what is drawn at random (%(default)s)")
    draw.add_argument("--out", default="drawn", help="folder of the pictures (%(default)s)")
    text = "cut the objects of a split out, for GT sampling"
    database = _add(
        data, "database", "data:database", text, "data database data/full --out data/full/database"
    )
    database.add_argument("--out", required=True, help="folder of the database")
    text = "write an info file of format 1.1, for mmdet3d's own NuScenesDataset"
    example = "data infos data/mini --out data/mini/nuscenes_infos_train.pkl"
    infos = _add(data, "infos", "data:infos", text, example)
    infos.add_argument("--out", required=True, help="the .pkl file")
    for parser in (draw, database, infos):
        parser.add_argument("root", help="dataset in nuScenes layout, folder of shards, or info file")
        parser.add_argument("--version", default="v1.0-mini", help="name of the tables folder (%(default)s)")
        parser.add_argument("--split", default="mini_train", help="devkit split (%(default)s)")


def _add_operators(commands: Commands, bench: bool) -> None:
    text = "show which implementation takes which bias, and why not"
    table = _add(commands, "operators", "operators:table", text, "operators --device cpu")
    table.add_argument("--device", choices=("cpu", "cuda"), help="one device alone (both)")
    text = "time the attention implementations at the decoder's shapes"
    timing = _add(commands, "bench", "operators:bench", text, "bench --shapes mini")
    if bench:
        import_module("operators.bench").add_arguments(timing)


def _add_config(commands: Commands) -> None:
    text = "print what every attention site of a config does, changed as asked, as a config"
    example = "plan experiments/configs/cmt_aqr_pillar_mini.py --set decoder.1.cross=none/sdpa_math"
    plan = _add(commands, "plan", "plan:plan", text, example)
    plan.add_argument("config", help="mmengine config file")
    plan.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SITE=BIAS/IMPL",
        help="what the sites that a pattern names do instead; may be repeated, the last one counts",
    )
    plan.add_argument("--out", help="file to write (the terminal)")
    text = "find bias that does not arrive, shapes that disagree and keys that nobody reads in a config"
    lint = _add(commands, "lint", "lint:lint", text, "lint experiments/configs/cmt_aqr_pillar_mini.py")
    lint.add_argument("config", help="mmengine config file")
    lint.add_argument("--fix", action="store_true", help="remove dead flags from the file; all else stays")
    lint.add_argument("--bases", action="store_true", help="with --fix: from its _base_ files too")
    lint.add_argument("--json", action="store_true", help="print JSON")
    text = "where the model will train: cuda in bfloat16, cpu in float32 (%(default)s)"
    lint.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help=text)


def _add_throughput(commands: Commands) -> None:
    text = "time training and inference of a config under several plans, on made-up frames of its size"
    example = "throughput experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py --plans plain rects mask"
    race = _add(commands, "throughput", "throughput:throughput", text, example)
    race.add_argument("config", help="mmengine config")
    race.add_argument(
        "--plans",
        nargs="+",
        default=["config"],
        metavar="PLAN",
        help="config: what it says; of models with AQR plain, dense, rects, mask, dense_mask; "
        "or 'NAME:pattern=bias/impl;...'",
    )
    race.add_argument("--steps", type=int, default=40, help="training steps, 0 for none (%(default)s)")
    race.add_argument("--calls", type=int, default=50, help="detections timed, 0 for none (%(default)s)")
    race.add_argument("--batch", type=int, default=1, help="samples per training step (%(default)s)")
    race.add_argument(
        "--boxes", type=int, default=45, help="boxes per frame; 83 make 1730 queries (%(default)s)"
    )
    race.add_argument("--memory-gib", type=float, help="use no more of the GPU than this")
    race.add_argument("--parts", action="store_true", help="forward time of each part of the model too")
    race.add_argument("--profile", action="store_true", help="the kernels of one step and one detection too")
    race.add_argument("--waits", action="store_true", help="where the host waits for the GPU too")
    race.add_argument("--no-fold", action="store_true", help="detect without folding batch norms")
    _cfg_options(race)
    race.add_argument("--device", choices=("cpu", "cuda"), help="(cuda if there is one)")
    race.add_argument("--seed", type=int, default=0, help="of weights and frames (%(default)s)")
    race.add_argument("--out", help="folder for the rows (runs/throughput/<config>_<time>)")


def _add_trial(commands: Commands) -> None:
    text = "run one trial of a recipe under Ray Train"
    train = _add(commands, "train", "trial:train", text, "train pretrain --out runs/pretrain")
    train.add_argument("recipe", help="a name that `biaswise study list` shows")
    train.add_argument("--trial", help="name of the trial, or how it begins (the first one)")
    train.add_argument("--plan", help="another plan: 'pattern=bias/impl;...'")
    train.add_argument("--seed", type=int, help="another seed")
    train.add_argument("--steps", type=int, help="another number of optimiser steps")
    train.add_argument("--device", choices=("cpu", "cuda"), help="another device")
    train.add_argument("--workers", type=int, help="DDP workers")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=JSON",
        help="override a config key; may be repeated",
    )
    _cfg_options(train)
    train.add_argument("--out", default=runs(), help="folder for <study>/trials/<trial> (%(default)s)")
    train.add_argument("--local", action="store_true", help="in this process, without Ray")
    text = "score a checkpoint under each sensor condition"
    example = "evaluate experiments/checkpoints/cmt_aqr_pillar_mini.safetensors --data data/mini"
    evaluate = _add(commands, "evaluate", "trial:evaluate", text, example)
    evaluate.add_argument("checkpoint", help="weights (*.safetensors)")
    evaluate.add_argument("--config", help="mmengine config (that of the demo)")
    _cfg_options(evaluate)
    evaluate.add_argument("--plan", help="'pattern=bias/impl;...' (no bias in the decoder)")
    evaluate.add_argument("--data", default="data/mini", help="dataset in nuScenes layout (%(default)s)")
    evaluate.add_argument("--version", default="v1.0-mini", help="name of the tables folder (%(default)s)")
    evaluate.add_argument("--split", default="mini_val", help="devkit split (%(default)s)")
    evaluate.add_argument("--conditions", default="", help="names, comma-separated (all)")
    evaluate.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    evaluate.add_argument("--out", default=runs(), help="folder for evaluate/trials/<name> (%(default)s)")


def _cfg_options(parser: argparse.ArgumentParser) -> None:
    text = "override config keys, as in mmengine's tools"
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help=text)


def _add_study(commands: Commands) -> None:
    study = _group(commands, "study", "run a recipe's trials under Ray Tune and judge them")
    text = "run a study; what is done is skipped"
    run = _add(study, "run", "study:run", text, "study run demo --concurrent 1")
    resume = _add(study, "resume", "study:resume", "go on with a study after any crash", "study resume demo")
    for parser in (run, resume):
        parser.add_argument("recipe", help="a name that `biaswise study list` shows")
        _running(parser)
    text = "show which trials are done, failed, partial or pending"
    status = _add(study, "status", "study:status", text, "study status demo")
    status.add_argument("recipe", help="a name that `biaswise study list` shows")
    status.add_argument("--runs", default=runs(), help="folder of the studies (%(default)s)")
    text = "train once with every layer biased, switch layers off at inference, rank them"
    screen = _add(commands, "screen", "screen:screen", text, "screen demo")
    screen.add_argument("recipe", help="a name that `biaswise study list` shows")
    screen.add_argument("--runs", default=runs(), help="folder of the studies (%(default)s)")
    screen.add_argument("--conditions", default="", help="names, comma-separated (those of the recipe)")
    _add(study, "list", "study:listing", "list the recipes, their questions and their costs", "study list")
    text = "judge simulated studies of known truth; say how often the verdicts are right"
    truth = _add(study, "calibrate", "calibrate:calibrate", text, "study calibrate --studies 100")
    truth.add_argument("--studies", type=int, default=1000, help="per planted truth (%(default)s)")
    truth.add_argument("--out", default="docs/studies/calibration", help="folder to write to (%(default)s)")


def _running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", default=runs(), help="folder of the studies (%(default)s)")
    parser.add_argument("--concurrent", type=int, help="trials at once (as the recipe says)")
    parser.add_argument("--probe", action="store_true", help="measure how many trials at once are best")
    parser.add_argument("--gpus-per-trial", type=int, metavar="N", help="DDP workers of each trial")
    parser.add_argument("--trials", type=int, metavar="N", help="most trials that may run (all)")
    parser.add_argument(
        "--gpu-hours", type=float, metavar="H", help="most GPU hours of all trials (no limit)"
    )
    parser.add_argument("--no-confirm", action="store_true", help="train nothing with fresh seeds in the end")
    parser.add_argument("--no-sync", action="store_true", help="send nothing to MLflow")


def _add_cluster(commands: Commands) -> None:
    text = "run a study on a Ray cluster as a job; returns its exit code, 130 if it was stopped"
    submit = _add(commands, "submit", "submit:submit", text, "submit demo --address http://127.0.0.1:8265")
    submit.add_argument("recipe", help="a name that `biaswise study list` shows")
    submit.add_argument("--address", help="job server (RAY_API_SERVER_ADDRESS, or port 8265 of this machine)")
    submit.add_argument("--home", default="", help="BIASWISE_HOME of the job (as the cluster has it)")
    submit.add_argument("--concurrent", type=int, help="trials at once (as the recipe says)")
    submit.add_argument("--no-sync", action="store_true", help="send nothing to MLflow")
    submit.add_argument("--no-wait", action="store_true", help="do not wait for its end")
    cluster = _group(commands, "cluster", "check cluster files; watch over spot machines")
    text = "check cluster.yaml and ray-job.yaml without a cloud"
    check = _add(cluster, "check", "cluster:check", text, "cluster check cluster.yaml")
    check.add_argument("file", nargs="*", help="files (cluster.yaml and ray-job.yaml)")
    text = "drain this machine's Ray node when the cloud gives notice; ends at once if it is no spot machine"
    watch = _add(cluster, "watch", "cluster:watch", text, "cluster watch --address 10.0.0.5:6379")
    watch.add_argument("--address", required=True, help="host:port of the cluster")
    watch.add_argument("--node-id", default="", help="Ray's id of the node (the one on this machine)")


def _add_view(commands: Commands) -> None:
    text = "print a study's verdicts and write its report, from its rows alone"
    report = _add(commands, "report", "view:report", text, "report demo")
    report.add_argument("study", help="name of a study, or its folder")
    report.add_argument("--runs", default=runs(), help="folder of the studies (%(default)s)")
    sync = _add(commands, "sync", "view:sync", "send rows to MLflow that it lacks", "sync demo")
    sync.add_argument("study", nargs="*", help="names or folders of studies (all)")
    sync.add_argument("--runs", default=runs(), help="folder of the studies (%(default)s)")
    ui = _add(commands, "ui", "view:ui", "start the MLflow UI on 127.0.0.1", "ui --port 5000")
    ui.add_argument("--port", type=int, default=5000, help="(%(default)s)")


if __name__ == "__main__":
    sys.exit(main())
