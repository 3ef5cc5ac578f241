"""``biaswise study new``: a study file of the user's own config, data and checkpoint."""

import json
import math
import shlex
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cli.options import CONFIGS_ARE_CODE, Command, OptionError, add_runs_dir
from experiments.cli.study.new_inputs import refuse_weights, refuse_windows, refuse_words, treatments_of
from experiments.cli.study.power import add_noise, show_power
from experiments.cli.study.template import Draft, write_draft
from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings

if TYPE_CHECKING:
    from experiments.calibration.planning.suggest import Suggestion
    from experiments.lint.check import LintReport
    from experiments.terminal import Terminal

BATCH = 16
"""Frames of a step: 2 on each of 8 GPUs, as CMT is trained."""
CPU_BATCH = 2
CONFIRMING = 6
"""Trials of a confirmation: three plans, two seeds."""
CONDITIONS = ("clean", "lidar_sector", "no_lidar", "one_camera", "no_cameras")
"""Of the sensors at evaluation, as in the studies that ship."""
LOADERS = 6
"""Loader processes of a GPU, as in CMT's configs."""

IMPLS = {
    "cuda": {"dense": "sdpa_efficient"},
    "cpu": {"global": "sdpa_math", "dense": "sdpa_math"},
}
OTHERWISE = {"cuda": "rects", "cpu": "gathered"}
"""Bias kind -> its fastest exact implementation on a device (docs/operators.md), and that of all others."""
REST = {
    "cuda": {"aqr.*.cross": "local/rects", "decoder.*.self": "none/sdpa_efficient"},
    "cpu": {"aqr.*.cross": "local/gathered", "decoder.*.self": "none/sdpa_flash"},
}


AFTERWARDS = """
Read {0}, then `biaswise study run {0}`. The noise of a trial on your data is not known before one has run;
`biaswise study power {0} --noise POINTS` shows what another one means."""


class NewStudy(Command):
    """Write a study file."""

    name = "new"
    help = "write a study file of your config, data and checkpoint; say what it can find and what it takes"
    example = (
        "study new my_study.py --config experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py "
        "--data /data/nuscenes --init cmt_r50.pth --gpus 8"
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("file", help="the study file (*.py), which must not exist")
        parser.add_argument("--config", required=True, help=f"mmengine config file; {CONFIGS_ARE_CODE}")
        parser.add_argument(
            "--data",
            required=True,
            metavar="PLACE",
            help="nuScenes (the folder that holds v1.0-trainval), or an info file (.pkl) in it",
        )
        text = "weights from which all trials start"
        parser.add_argument("--init", required=True, metavar="CHECKPOINT", help=text)
        parser.add_argument("--gpus", required=True, type=int, metavar="N", help="GPUs; 0 trains on the CPU")
        parser.add_argument("--hours", type=float, metavar="H", help="most hours by the clock (no limit)")
        parser.add_argument(
            "--treatment",
            action="append",
            metavar="LEVEL",
            help="what is compared with no bias: window, window:15 (a window of 15 cells), gaussian; may be "
            "repeated (window)",
        )
        add_runs_dir(parser)
        add_noise(parser)

    def run(self, arguments: Namespace) -> int:
        """Return 1 if the study can decide nothing at its margin."""
        from experiments.recipes.registry import recipe
        from experiments.terminal import Terminal

        console, file = Terminal(), Path(arguments.file)
        refuse_words(arguments, file)
        known = _inspect(arguments, console)
        found = _plan(arguments, known)
        text = write_draft(_draft(arguments, file, known, found))
        file.write_text(text, encoding="utf-8")
        made = recipe(str(file))
        _say(console, f"{file} is written, {len(text.splitlines())} lines.\n")
        decides = show_power(made, arguments, console)
        _say(console, AFTERWARDS.format(shlex.quote(str(file))))
        return 0 if decides else 1


@dataclass(frozen=True)
class Known:
    """What is read from config, data and checkpoint.

    Attributes:
        base: settings with data, length and device, as far as they are known.
        sites: cross-attention of the decoder.
        others: the other sites.
        frozen: parts of the model that do not train.
        epoch: training frames.
    """

    base: TrialSettings
    sites: tuple[str, ...]
    others: tuple[str, ...]
    frozen: tuple[str, ...]
    epoch: int


def _inspect(arguments: Namespace, console: "Terminal") -> Known:
    """Read config and data; print what matters of them."""
    from experiments.lint.aqr import nearest
    from experiments.lint.check import lint
    from pipeline.detector.build import config_path, load_config

    path = config_path(arguments.config)
    with console.status("reading the config"):
        device = "cuda" if arguments.gpus else "cpu"
        report, config = lint(path, device), load_config(path)
    names = tuple(line.site for line in report.sites)
    sites = tuple(site for site in names if site.startswith("decoder.") and site.endswith(".cross"))
    if not sites or not any(site.startswith("aqr.") for site in names):
        raise OptionError(_no_bias_possible(arguments.config, nearest(config.model), bool(sites)))
    refuse_windows(treatments_of(arguments), report.maps)
    with console.status("reading the weights"):
        refuse_weights(arguments.init, path, builds=not arguments.gpus and not report.wrong)
    custom = (config.optim_wrapper.get("paramwise_cfg") or {}).get("custom_keys") or {}
    frozen = tuple(key for key, value in custom.items() if value.get("lr_mult") == 0)
    _print_report(report, sites, frozen, console)
    others = tuple(site for site in names if site not in sites)
    base, epoch = _base(arguments, others)
    return Known(base, sites, others, frozen, epoch)


def _no_bias_possible(config: str, like: str, has_layers: bool) -> str:
    """Say what a config lacks, and how it gets that; ``like`` is a shipped config of its size."""
    lacks, words = "cross-attention in a decoder", f"derive it from {like}"
    if has_layers:
        lacks = "AQR"
        words = (
            f"`biaswise plan {shlex.quote(config)} --aqr --out NEW.py` writes a config that derives from it "
            f"and has AQR as {like} has; give NEW.py"
        )
    return f"--config {config}: its model has no {lacks}, so that no layer can have a bias; {words}"


def _print_report(
    report: "LintReport", sites: tuple[str, ...], frozen: tuple[str, ...], console: "Terminal"
) -> None:
    about = (
        f"{report.config.name}: {len(report.sites)} attention sites; the bias varies at {', '.join(sites)}."
    )
    _say(console, f"{about}\nFrozen: {', '.join(frozen) or 'nothing'}.")
    for finding in report.wrong:
        place = f"{finding.place.file.name}:{finding.place.line}"
        _say(console, f"finding: {place} {finding.sentence}; {finding.advice}")


def _say(console: "Terminal", text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _base(arguments: Namespace, others: tuple[str, ...]) -> tuple[TrialSettings, int]:
    """Return the settings of all trials, and the training frames."""
    from experiments.recipes.fine_tuning import KEPT_STATISTICS
    from experiments.recipes.overrides import with_data
    from experiments.recipes.recipe import Recipe
    from pipeline.config.plan import Plan
    from pipeline.data.formats.nuscenes_tables import count_frames
    from pipeline.storage.paths import resolve_path

    workers = max(arguments.gpus, 1)
    batch = max(1, round(BATCH / workers)) if arguments.gpus else CPU_BATCH
    data = DataSettings(
        (arguments.data,), arguments.data, num_loader_workers=LOADERS if arguments.gpus else 0
    )
    base = TrialSettings(
        study="new",
        config=_config(arguments.config),
        plan=Plan(()),
        data=data,
        train=TrainSettings(None, batch, amp=bool(arguments.gpus)),
        init_checkpoint=arguments.init,
        overrides=(KEPT_STATISTICS,),
        conditions=CONDITIONS,
        num_workers=workers,
        device="cuda" if arguments.gpus else "cpu",
    )
    if not resolve_path(arguments.data).exists():
        raise OptionError(f"--data {arguments.data}: there is no {resolve_path(arguments.data)}")
    (base,) = with_data(Recipe("new", "", "", (base,)), arguments.data).trials
    epoch = count_frames(resolve_path(base.data.val), base.data.nuscenes_version, base.data.train_split)
    steps = max(1, epoch // (batch * workers))
    train = replace(
        base.train,
        steps=steps,
        warmup_steps=min(100, steps // 4),
        checkpoint_every=max(10, steps // 7),
    )
    return replace(base, train=train), epoch


def _config(typed: str) -> str:
    """Return a config's path as settings have it: of the package, as typed, or absolute."""
    from pipeline.storage.paths import ROOT, resolve_path

    path = resolve_path(typed).resolve()
    if path.is_relative_to(ROOT / "experiments"):
        return path.relative_to(ROOT).as_posix()
    return typed if not Path(typed).is_absolute() and (Path.cwd() / typed).exists() else str(path)


def _plan(arguments: Namespace, known: Known) -> "Suggestion":
    """Choose design and seeds."""
    from experiments.calibration.planning.suggest import suggest
    from experiments.recipes.decision_rule import DecisionRule
    from experiments.recipes.factorial import Factor

    levels = ("none", *treatments_of(arguments))
    rule = DecisionRule(treatments=levels[1:], baseline="none")
    return suggest([Factor(site, levels) for site in known.sites], rule, _most_trials(arguments, known))


def _most_trials(arguments: Namespace, known: Known) -> float:
    """Return how many trials the hours allow."""
    if arguments.hours is None:
        return math.inf
    from experiments.recipes.cost import speed_of, trial_seconds
    from experiments.recipes.decision_rule import DecisionRule
    from pipeline.data.formats.nuscenes_tables import count_frames
    from pipeline.storage.paths import resolve_path

    base, speed = known.base, speed_of(known.base)
    if speed is None:
        raise OptionError(
            f"--hours {arguments.hours:g}: how long a trial of {base.config} takes was never measured, and "
            "no config that ships has its branches, sizes and frozen parts; leave the option out. "
            f"`biaswise throughput {shlex.quote(base.config)}` measures a step where it will train"
        )
    frames = count_frames(resolve_path(base.data.val), base.data.nuscenes_version, base.data.val_split)
    at_once = 1 if arguments.gpus else 2
    seconds = arguments.hours * 3600 - DecisionRule().stopwatch_s
    return max(0, math.floor(seconds * at_once / trial_seconds(base, speed, frames)))


def _draft(arguments: Namespace, file: Path, known: Known, found: "Suggestion") -> Draft:
    device, treatments = known.base.device, treatments_of(arguments)
    factors = f"[Factor(site, ({', '.join(map(json.dumps, ('none', *treatments)))})) for site in sites]"
    more = f", halvings={found.halvings}" if found.halvings else ""
    patterns = REST[device].items()
    return Draft(
        file=file.name,
        command=shlex.join(["biaswise", "study", "new", *_words(arguments)]),
        base=replace(known.base, study=file.stem),
        sites=known.sites,
        treatments=treatments,
        design=f"{found.design.kind}({factors}{more})",
        arms=len(found.design.arms),
        impls={level: _impl(device, level.partition(":")[0]) for level in ("none", *treatments)},
        rest={p: choice for p, choice in patterns if any(fnmatchcase(site, p) for site in known.others)},
        frozen=known.frozen,
        epoch=known.epoch,
        seeds=found.seeds,
        confirmation=_most_trials(arguments, known) - found.trials >= CONFIRMING,
    )


def _impl(device: str, kind: str) -> str:
    return IMPLS[device].get(kind, OTHERWISE[device])


def _words(arguments: Namespace) -> list[str]:
    """Return the words of the command line, for the file."""
    words: list[Any] = [arguments.file, "--config", arguments.config, "--data", arguments.data]
    words += ["--init", arguments.init, "--gpus", arguments.gpus]
    words += ["--hours", f"{arguments.hours:g}"] if arguments.hours is not None else []
    for level in arguments.treatment or ():
        words += ["--treatment", level]
    return [str(word) for word in words]
