"""``biaswise train`` and ``biaswise evaluate``: one trial, one checkpoint."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from experiments.overrides import read_overrides
from experiments.recipes.mini import MINI_CONFIG, cross_plan
from experiments.recipes.recipe import Recipe
from experiments.recipes.registry import recipe
from experiments.storage.study_folder import StudyError, StudyFolder
from experiments.study.preflight import make_datasets
from experiments.study.progress import StudyProgress
from pipeline.config.plan import Plan
from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings
from pipeline.data.corruptions import CONDITIONS
from pipeline.metrics.rows import read_rows, select
from pipeline.redaction import refuse_secrets
from pipeline.runtime.session import LocalSession


def train(arguments: Namespace) -> int:
    """Run one trial."""
    console = Console()
    chosen = recipe(arguments.recipe)
    settings = _changed(_choose(chosen, arguments.trial), arguments)
    refuse_secrets(settings.to_dict())
    make_datasets(chosen.datasets, console)
    folder = StudyFolder(Path(arguments.out).resolve() / chosen.name).trial(chosen.trial_name(settings))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings.to_dict(), indent=2) + "\n", encoding="utf-8")
    console.print(f"trial in {folder}", highlight=False, soft_wrap=True)
    if arguments.local:
        _run_here(settings, folder)
    else:
        from pipeline.ray_train.launch import train_one

        with StudyProgress(console, total=1, done=0) as progress:
            progress.started(folder.name, folder, len(settings.conditions))
            train_one(settings, folder)
            progress.ended(folder.name)
    _print_scores(folder, console)
    return 0


def evaluate(arguments: Namespace) -> int:
    """Score a checkpoint."""
    conditions = tuple(filter(None, arguments.conditions.split(","))) or tuple(CONDITIONS)
    settings = TrialSettings(
        study="evaluate",
        config=arguments.config or MINI_CONFIG,
        plan=Plan.parse(arguments.plan) if arguments.plan else cross_plan(("none",) * 3),
        data=DataSettings((arguments.data,), arguments.data, arguments.version, val_split=arguments.split),
        train=TrainSettings(steps=0),
        init_checkpoint=str(Path(arguments.checkpoint).resolve()),
        conditions=conditions,
        device=arguments.device,
        overrides=read_overrides(arguments.cfg_options),
    )
    name = f"{Path(arguments.checkpoint).stem}_{settings.digest}"
    folder = StudyFolder(Path(arguments.out).resolve() / "evaluate").trial(name)
    _run_here(settings, folder)
    _print_scores(folder, Console())
    return 0


def _run_here(settings: TrialSettings, folder: Path) -> None:
    from pipeline.training.trial import run_trial

    run_trial(settings, LocalSession(folder, torch.device(settings.device), quiet=False))


def _choose(chosen: Recipe, begins: str | None) -> TrialSettings:
    found = {name: s for name, s in chosen.named_trials().items() if name.startswith(begins or "")}
    if not found or (begins and len(found) > 1):
        raise StudyError(
            f"--trial {begins!r} fits {len(found)} trials of {chosen.name}; "
            f"they are {', '.join(chosen.named_trials())}"
        )
    return next(iter(found.values()))


def _changed(settings: TrialSettings, arguments: Namespace) -> TrialSettings:
    """Apply what the command line says otherwise."""
    if arguments.plan is not None:
        settings = replace(settings, plan=Plan.parse(arguments.plan), plan_mixture=())
    if arguments.steps is not None:
        settings = replace(settings, train=replace(settings.train, steps=arguments.steps))
    given = {"seed": arguments.seed, "device": arguments.device, "workers": arguments.workers}
    overrides = tuple(read_override(text) for text in arguments.set) + read_overrides(arguments.cfg_options)
    changes = {key: value for key, value in given.items() if value is not None}
    return replace(settings, overrides=settings.overrides + overrides, **changes)


def read_override(text: str) -> tuple[str, str]:
    """Split ``KEY=JSON``."""
    key, equals, value = text.partition("=")
    if not equals:
        raise StudyError(f"--set {text}: expected KEY=JSON")
    return key, value


def _print_scores(folder: Path, console: Console) -> None:
    """Print the last accuracy per sensor condition."""
    table = Table("condition", "mAP", "NDS", box=None)
    scores: dict[str, dict[str, float]] = {}
    rows = read_rows(folder / "rows.jsonl")
    for metric in ("mAP", "NDS"):
        for row in select(rows, metric=metric):
            scores.setdefault(row.condition, {})[metric] = row.value
    for condition, found in scores.items():
        table.add_row(condition, *(f"{100 * found[m]:.2f} %" if m in found else "" for m in ("mAP", "NDS")))
    console.print(table)
