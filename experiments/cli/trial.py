"""``biaswise train`` and ``biaswise evaluate``: one trial, one checkpoint."""

import hashlib
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.options import (
    CONFIGS_ARE_CODE,
    Command,
    OptionError,
    add_cfg_options,
    add_conditions,
    add_missing_cameras,
    add_runs_dir,
    add_split,
    complete_version,
    read_cfg_options,
)
from experiments.cli.study.chosen import add_overrides, add_study, unchecked_study

if TYPE_CHECKING:
    from experiments.recipes.recipe import Recipe
    from experiments.terminal import Terminal
    from pipeline.config.early_stopping import EarlyStopping
    from pipeline.config.settings import TrialSettings


class Train(Command):
    """Run one trial."""

    name = "train"
    help = "run one trial of a recipe under Ray Train"
    example = "train pretrain --runs-dir runs"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_study(parser)
        add_overrides(parser)
        parser.add_argument("--trial", help="name of the trial, or how it begins (the first one)")
        parser.add_argument("--plan", help="another plan: 'pattern=bias/impl;...'")
        parser.add_argument("--seed", type=int, help="another seed")
        parser.add_argument("--steps", type=int, help="another number of optimiser steps")
        parser.add_argument("--device", choices=("cpu", "cuda"), help="another device")
        parser.add_argument(
            "--num-workers", type=int, metavar="N", help="workers, whose gradients are averaged"
        )
        add_cfg_options(parser)
        add_runs_dir(parser)
        parser.add_argument("--local", action="store_true", help="in this process, without Ray")
        parser.add_argument(
            "--measure-every",
            type=int,
            metavar="N",
            help="measure mAP and NDS on the clean frames every N steps, too (at the end only)",
        )

    def run(self, arguments: Namespace) -> int:
        """Return 0."""
        overrides = read_cfg_options(arguments)
        from experiments.storage.study_folder import StudyFolder, write_json
        from experiments.study.preflight.datasets import make_datasets
        from experiments.terminal import Terminal
        from pipeline.detector.build import load_config
        from pipeline.redaction import refuse_secrets

        console = Terminal()
        chosen = unchecked_study(arguments)
        settings = _changed(_choose(chosen, arguments.trial), arguments, overrides)
        measured = _measured_every(settings, arguments.measure_every)
        refuse_secrets(settings.to_dict())
        load_config(settings.config, settings.overrides)  # refuses what is wrong before a file is written
        make_datasets(chosen.datasets, console)
        study = StudyFolder(Path(arguments.runs_dir).resolve() / chosen.name)
        folder = study.trial(chosen.trial_name(settings))
        with study.lock():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "settings.json", settings.to_dict())
            console.print(f"trial in {folder}", highlight=False, soft_wrap=True)
            if arguments.local:
                _run_here(settings, folder, measured)
            else:
                _run_under_ray(settings, folder, measured, console)
        _print_scores(folder, console)
        return 0


class Evaluate(Command):
    """Score a checkpoint."""

    name = "evaluate"
    help = "score a checkpoint under each sensor condition"
    example = "evaluate experiments/checkpoints/cmt_aqr_pillar_mini.safetensors --data data/mini"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("checkpoint", help="weights (*.safetensors)")
        parser.add_argument("--config", help=f"mmengine config file (that of the demo); {CONFIGS_ARE_CODE}")
        add_cfg_options(parser)
        parser.add_argument("--plan", help="'pattern=bias/impl;...' (no bias in the decoder)")
        parser.add_argument("--data", default="data/mini", help="dataset in nuScenes layout (%(default)s)")
        add_split(parser, "val")
        add_missing_cameras(parser)
        add_conditions(parser, "all")
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
        add_runs_dir(parser)

    def run(self, arguments: Namespace) -> int:
        """Return 0."""
        overrides = read_cfg_options(arguments)
        from experiments.recipes.mini import MINI_CONFIG, cross_plan
        from experiments.storage.study_folder import StudyFolder
        from experiments.terminal import Terminal
        from pipeline.config.plan import Plan
        from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings
        from pipeline.data.corruptions import CONDITIONS
        from pipeline.storage.paths import resolve_path

        complete_version(arguments, resolve_path(arguments.data))
        settings = TrialSettings(
            study="evaluate",
            config=arguments.config or MINI_CONFIG,
            plan=Plan.parse(arguments.plan) if arguments.plan else cross_plan(("none",) * 3),
            data=DataSettings(
                (arguments.data,),
                arguments.data,
                arguments.version,
                train_split=arguments.split,  # nothing is trained, and no other split need exist
                val_split=arguments.split,
                missing_cameras=arguments.missing_cameras,
            ),
            train=TrainSettings(steps=0),
            init_checkpoint=str(Path(arguments.checkpoint).resolve()),
            conditions=tuple(filter(None, arguments.conditions.split(","))) or tuple(CONDITIONS),
            device=arguments.device,
            overrides=overrides,
        )
        folder = StudyFolder(Path(arguments.runs_dir).resolve() / "evaluate").trial(_evaluation(settings))
        _run_here(settings, folder)
        _print_scores(folder, Terminal())
        return 0


def _evaluation(settings: "TrialSettings") -> str:
    """Return the name of an evaluation; new weights, or data, at the same path have another."""
    from experiments.storage.study_folder import digest_of
    from pipeline.data.formats.fingerprint import fingerprint
    from pipeline.storage.paths import not_a_file, split_name

    file, _ = split_name(Path(settings.init_checkpoint))
    weights = "" if not_a_file(file) else digest_of(file)  # the trial says what is wrong with it
    content = hashlib.sha256(f"{weights} {fingerprint(settings.data)}".encode()).hexdigest()[:8]
    return f"{file.stem}_{settings.digest}_{content}"


def _measured_every(settings: "TrialSettings", steps: int | None) -> "EarlyStopping | None":
    """Return where a trial is measured before its end, which stops it nowhere; None: nowhere.

    Raises:
        OptionError: it would be measured before the first step, or its number of steps is not known.
    """
    from pipeline.config.early_stopping import EarlyStopping

    if steps is None:
        return None
    if steps < 1 or settings.train.steps is None:
        raise OptionError(
            f"--measure-every {steps} of {settings.train.steps} steps: expected 1 or more, and a number of "
            "steps in the settings"
        )
    return EarlyStopping(thresholds=tuple((at, None) for at in range(steps, settings.train.steps, steps)))


def _run_here(settings: "TrialSettings", folder: Path, measured: "EarlyStopping | None" = None) -> None:
    """Run a trial in this process."""
    import torch

    from pipeline.runtime.session import LocalSession
    from pipeline.training.trial import run_trial

    run_trial(settings, LocalSession(folder, torch.device(settings.device), quiet=False), measured)


def _run_under_ray(
    settings: "TrialSettings", folder: Path, measured: "EarlyStopping | None", console: "Terminal"
) -> None:
    """Run a trial in workers of Ray Train, with a progress bar."""
    from experiments.study.progress import StudyProgress
    from pipeline.ray_train.launch import train_one

    with StudyProgress(console, total=1, done=0) as progress:
        progress.started({folder.name: folder})
        train_one(settings, folder, measured)
        progress.ended(folder.name)


def _choose(chosen: "Recipe", begins: str | None) -> "TrialSettings":
    """Return the settings of the trial whose name begins as given; of the first one for None."""
    trials = {name: s for name, s in chosen.named_trials().items() if name.startswith(begins or "")}
    if not trials or (begins and len(trials) > 1):
        raise OptionError(
            f"--trial {begins!r} fits {len(trials)} trials of {chosen.name}; "
            f"they are {', '.join(chosen.named_trials())}"
        )
    return next(iter(trials.values()))


def _changed(
    settings: "TrialSettings", arguments: Namespace, overrides: tuple[tuple[str, str], ...]
) -> "TrialSettings":
    """Return the settings with the changes that the command line asks for."""
    from pipeline.config.plan import Plan

    if arguments.plan is not None:
        settings = replace(settings, plan=Plan.parse(arguments.plan), plan_mixture=())
    if arguments.steps is not None:
        settings = replace(settings, train=replace(settings.train, steps=arguments.steps))
    given = {"seed": arguments.seed, "device": arguments.device, "num_workers": arguments.num_workers}
    changes = {key: value for key, value in given.items() if value is not None}
    return replace(settings, overrides=settings.overrides + overrides, **changes)


def _print_scores(folder: Path, console: "Terminal") -> None:
    """Print the last accuracy per sensor condition."""
    from rich.table import Table

    from pipeline.metrics.rows import read_rows, select

    table = Table("condition", "mAP", "NDS", box=None)
    scores: dict[str, dict[str, float]] = {}
    rows = read_rows(folder / "rows.jsonl")
    for metric in ("mAP", "NDS"):
        for row in select(rows, metric=metric, site="", scene="", draw=None):
            scores.setdefault(row.condition, {})[metric] = row.value
    for condition, score in scores.items():
        table.add_row(condition, *(f"{100 * score[m]:.2f} %" if m in score else "" for m in ("mAP", "NDS")))
    console.print(table)
