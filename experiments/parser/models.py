"""The words of the commands about operators, configs, single trials and speed."""

from importlib import import_module

from experiments.parser.commands import Commands, cfg_options, command
from pipeline.storage.paths import default_runs_dir


def add_operators(commands: Commands, bench: bool) -> None:
    """Declare ``operators`` and ``bench``."""
    text = "show which implementation takes which bias, and why not"
    table = command(commands, "operators", "operators:table", text, "operators --device cpu")
    table.add_argument("--device", choices=("cpu", "cuda"), help="one device alone (both)")
    text = "time the attention implementations at the decoder's shapes"
    timing = command(commands, "bench", "operators:bench", text, "bench --shapes mini")
    if bench:
        import_module("operators.bench.command").add_arguments(timing)


def add_config(commands: Commands) -> None:
    """Declare ``plan`` and ``lint``."""
    text = "print what every attention site of a config does, changed as asked, as a config"
    example = "plan experiments/configs/cmt_aqr_pillar_mini.py --set decoder.1.cross=none/sdpa_math"
    plan = command(commands, "plan", "plan:plan", text, example)
    plan.add_argument("config", help="mmengine config file")
    plan.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SITE=BIAS/IMPL",
        help="what the sites that a pattern names do instead, such as window/rects, window:15/rects (its own "
        "size, cells), window/lowrank@16 (a rank); may be repeated, the last one counts",
    )
    plan.add_argument("--out", help="file to write (the terminal)")
    text = "find bias that does not arrive, shapes that disagree and keys that nobody reads in a config"
    lint = command(commands, "lint", "lint:lint", text, "lint experiments/configs/cmt_aqr_pillar_mini.py")
    lint.add_argument("config", help="mmengine config file")
    lint.add_argument("--fix", action="store_true", help="remove dead flags from the file; all else stays")
    lint.add_argument("--bases", action="store_true", help="with --fix: from its _base_ files too")
    lint.add_argument("--json", action="store_true", help="print JSON")
    text = "where the model will train: cuda in bfloat16, cpu in float32 (%(default)s)"
    lint.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help=text)


def add_throughput(commands: Commands) -> None:
    """Declare ``throughput``."""
    text = "time training and inference of a config under several plans, on made-up frames of its size"
    example = "throughput experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py --plans plain rects mask"
    race = command(commands, "throughput", "throughput:throughput", text, example)
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
    race.add_argument(
        "--rounds",
        type=int,
        default=1,
        help="times that all plans run in turn; ratios within a round (%(default)s)",
    )
    race.add_argument("--batch", type=int, default=1, help="samples per training step (%(default)s)")
    race.add_argument(
        "--boxes", type=int, default=45, help="boxes per frame; 83 make 1730 queries (%(default)s)"
    )
    race.add_argument("--memory-gib", type=float, help="use no more of the GPU than this")
    race.add_argument("--parts", action="store_true", help="forward time of each part of the model too")
    race.add_argument("--profile", action="store_true", help="the kernels of one step and one detection too")
    race.add_argument("--waits", action="store_true", help="where the host waits for the GPU too")
    race.add_argument("--no-fold", action="store_true", help="detect without folding batch norms")
    race.add_argument("--no-graph", action="store_true", help="train and detect without CUDA graphs")
    cfg_options(race)
    race.add_argument("--device", choices=("cpu", "cuda"), help="(cuda if there is one)")
    race.add_argument("--seed", type=int, default=0, help="of weights and frames (%(default)s)")
    race.add_argument("--out", help="folder for the rows (runs/throughput/<config>_<time>)")


def add_trial(commands: Commands) -> None:
    """Declare ``train`` and ``evaluate``."""
    text = "run one trial of a recipe under Ray Train"
    train = command(commands, "train", "trial:train", text, "train pretrain --out runs/pretrain")
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
    cfg_options(train)
    train.add_argument(
        "--out", default=default_runs_dir(), help="folder for <study>/trials/<trial> (%(default)s)"
    )
    train.add_argument("--local", action="store_true", help="in this process, without Ray")
    text = "score a checkpoint under each sensor condition"
    example = "evaluate experiments/checkpoints/cmt_aqr_pillar_mini.safetensors --data data/mini"
    evaluate = command(commands, "evaluate", "trial:evaluate", text, example)
    evaluate.add_argument("checkpoint", help="weights (*.safetensors)")
    evaluate.add_argument("--config", help="mmengine config (that of the demo)")
    cfg_options(evaluate)
    evaluate.add_argument("--plan", help="'pattern=bias/impl;...' (no bias in the decoder)")
    evaluate.add_argument("--data", default="data/mini", help="dataset in nuScenes layout (%(default)s)")
    evaluate.add_argument("--version", default="v1.0-mini", help="name of the tables folder (%(default)s)")
    evaluate.add_argument("--split", default="mini_val", help="devkit split (%(default)s)")
    evaluate.add_argument("--conditions", default="", help="names, comma-separated (all)")
    evaluate.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    evaluate.add_argument(
        "--out", default=default_runs_dir(), help="folder for evaluate/trials/<name> (%(default)s)"
    )
