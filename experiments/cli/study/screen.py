"""``biaswise study screen``: a cheap first look at which layers a bias matters in."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.options import Command, add_conditions, add_runs_dir
from experiments.cli.study.chosen import add_overrides, add_study, chosen_study

if TYPE_CHECKING:
    from experiments.recipes.recipe import Recipe
    from experiments.storage.study_folder import StudyFolder
    from experiments.terminal import Terminal
    from pipeline.config.settings import TrialSettings

CAVEAT = "An intervention, not a retraining: it ranks the layers and draws no verdict."


class ScreenStudy(Command):
    """Train with every layer biased, measure all on/off masks, rank the layers."""

    name = "screen"
    help = "train once with every layer biased, switch layers off at inference, rank them"
    example = "study screen demo"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_study(parser)
        add_overrides(parser)
        add_runs_dir(parser)
        add_conditions(parser, "those of the recipe")

    def run(self, arguments: Namespace) -> int:
        """Return 1 if the training failed."""
        from experiments.analysis.screening import FOLDER, ROWS, masks, rule_of, screened
        from experiments.storage.corrected_rule import as_begun
        from experiments.storage.study_folder import StudyFolder
        from experiments.terminal import Terminal

        console = Terminal()
        chosen = chosen_study(arguments)
        study = StudyFolder(Path(arguments.runs_dir).resolve() / chosen.name)
        chosen = as_begun(study.path, chosen) or chosen
        settings = screened(chosen)
        plans = masks(chosen)
        console.print(
            f"{len(plans)} masks of {len(chosen.sites)} layers, one training with seed {settings.seed}, "
            f"which no trial of the study has; folder {study.path / FOLDER}"
        )
        trained = _trained(chosen, settings, study, console)
        if trained is None:
            return 1
        named = tuple(filter(None, arguments.conditions.split(","))) or settings.conditions
        conditions = tuple(dict.fromkeys((rule_of(chosen).condition, *named)))
        path = study.path / FOLDER / ROWS
        _measure(replace(settings, conditions=conditions), trained, chosen, path, console)
        _show(chosen, path, conditions, console)
        return 0


def _trained(
    chosen: "Recipe", settings: "TrialSettings", study: "StudyFolder", console: "Terminal"
) -> Path | None:
    """Train the trial of the screening, unless that is done; return its folder, or None if it failed."""
    from experiments.analysis.screening import FOLDER
    from experiments.storage.study_folder import StudyFolder
    from experiments.study.preflight.checks import check_data, check_trials
    from experiments.study.preflight.datasets import make_datasets
    from experiments.study.preflight.inputs import digest_inputs
    from experiments.study.preflight.models import check_models
    from experiments.study.tune_runner import ExecutionOptions, run_trials

    name = chosen.trial_name(settings)
    alone = replace(
        chosen, trials=(settings,), rule=None, design=None, early_stopping=None, confirmation_seeds=()
    )
    folder = StudyFolder(study.path / FOLDER)
    with folder.lock():
        folder.claim(alone, digest_inputs(alone))
        make_datasets(alone.datasets, console)
        check_trials(alone, folder)
        if not folder.is_complete(name):
            check_data(alone)
            check_models(alone, console)
        outcome = run_trials(alone, folder, console, ExecutionOptions(tracking=False))
    for reason in outcome.failed.values():
        console.print(f"failed: {name}: {reason}", style="red", soft_wrap=True)
    return folder.trial(name) if outcome.complete else None


def _measure(
    settings: "TrialSettings", trained: Path, chosen: "Recipe", path: Path, console: "Terminal"
) -> None:
    """Evaluate the trained model under all masks; write the rows."""
    from experiments.analysis.screening import masks
    from experiments.storage.study_folder import StudyFolder
    from experiments.study.progress import task_bar
    from pipeline.evaluation.intervention import evaluate_under_plans
    from pipeline.metrics.rows import Row, read_rows

    path.parent.mkdir(parents=True, exist_ok=True)
    steps = max(row.step for row in read_rows(trained / "rows.jsonl"))
    common = Row(
        *(chosen.name, trained.name, "", "", "", 0.0),
        seed=settings.seed,
        step=steps,
        recipe_digest=chosen.digest,
    )
    folder = StudyFolder(path.parent)
    with folder.lock(), task_bar(console, "switching layers off") as advance:
        evaluate_under_plans(settings, trained / "weights.safetensors", masks(chosen), path, common, advance)


def _show(chosen: "Recipe", path: Path, conditions: tuple[str, ...], console: "Terminal") -> None:
    """Print the ranking, and write it beside the rows."""
    from rich.table import Table

    from experiments.analysis.screening import RANKING, rank, ranking_record, rule_of
    from experiments.storage.study_folder import write_json
    from pipeline.metrics.rows import read_rows

    rule = rule_of(chosen)
    rows = read_rows(path)
    ranking = rank(rows, chosen.sites, rule)
    others = {c: {one.site: one for one in rank(rows, chosen.sites, rule, c)} for c in conditions}
    unit = f"points of {rule.metric}"
    table = Table(
        "layer", f"{rule.treatments[0]} on, {unit}", "last off", "alone on", *others, box=None, title=CAVEAT
    )
    for one in ranking:
        numbers = (one.effect, one.last, one.alone, *(others[c][one.site].effect for c in others))
        table.add_row(one.site, *(f"{value:+.2f}" for value in numbers))
    console.print(table)
    content = {
        "what": CAVEAT,
        **ranking_record(path, ranking, rule, chosen.digest),
        "effect_points": {
            c: {site: one.effect for site, one in ranked.items()} for c, ranked in others.items()
        },
    }
    write_json(path.with_name(RANKING), content)
