"""The end of a study: its report, its verdicts and models in MLflow."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.analysis.confirmation import FOLDER as CONFIRMATION
from experiments.analysis.decide import Evidence
from experiments.analysis.recommend import Candidate, Recommendation
from experiments.analysis.verdicts import Verdict
from experiments.recipes.factorial import level_of
from experiments.recipes.recipe import Recipe
from experiments.reporting.report import Report, print_report, write_report
from experiments.reporting.summary import Summary
from experiments.reporting.tables.base import spell_levels
from experiments.storage.study_folder import StudyError, StudyFolder, settings_of, write_json
from experiments.terminal import Terminal
from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.storage.trial_status import TrialState, read_status
from pipeline.tracking.study_verdicts import VERDICTS, RecommendedPlan, SiteVerdict, StudyVerdicts

if TYPE_CHECKING:
    from pipeline.tracking.registered_model import Version


def show_report(folder: Path, console: Terminal, figures: bool = True, config: bool = True) -> Report:
    """Judge a study, write its report and print the verdicts.

    Args:
        folder: the study.
        console: where the verdicts are printed.
        figures: also draw the figures, and write the page that shows them.
        config: also write the recommended plan as a config. Runs the config of the trials, which is code.

    Returns:
        The report; ``verdicts.json`` holds what tracking shows of it.

    Raises:
        ReportError: the folder is no study, or has no rows.
        RowsError: a rows file is broken elsewhere than in its last line.
    """
    report = write_report(folder, partial(_config_of, folder, console) if config else None, figures)
    write_verdicts(report.summary, folder)
    print_report(report, console)
    return report


def track(folder: Path, console: Terminal) -> bool:
    """Send all of a study to MLflow, say where it is seen, and return whether that worked."""
    from pipeline.tracking.mlflow_sync import sync

    sent = sync(folder)
    if sent.warning:
        console.print(f"warning: {sent.warning}", style="yellow", soft_wrap=True)
        return False
    said = f"MLflow: {sent.trials} trials in {sent.uri}; {sent.table}"
    console.print(said, highlight=False, soft_wrap=True)
    return True


def register_models(recipe: Recipe, folder: StudyFolder, summary: Summary, console: Terminal) -> None:
    """Register weights and config of the recommended plan and of no bias, and say how large they are."""
    from pipeline.tracking.registered_model import RECOMMENDED, model_name, register

    versions = versions_of(recipe, folder, summary)
    if not versions:
        return
    if versions[0].alias != RECOMMENDED:
        console.print("no trial of the recommended plan has weights here; it is not registered")
    sizes = ", ".join(f"{version.alias} {version.size_mb:.1f} MB" for version in versions)
    console.print(f"MLflow: registering {model_name(recipe.name)}: {sizes}", highlight=False, soft_wrap=True)
    if warning := register(recipe.name, versions):
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)


def versions_of(recipe: Recipe, folder: StudyFolder, summary: Summary) -> "list[Version]":
    """Return the recommended plan and no bias, as trials of one seed trained them if there is such a seed.

    The lowest seed is taken, whatever it measured: the best of several would look better than it is.
    """
    from pipeline.tracking.registered_model import BASELINE, RECOMMENDED, Version

    advice = summary.advice
    if advice is None or recipe.rule is None:
        return []
    trained = _trained(recipe, folder)
    wanted = {RECOMMENDED: advice.best.levels, BASELINE: (recipe.rule.baseline,) * len(recipe.sites)}
    common = set.intersection(*(set(trained.get(levels, {})) for levels in wanted.values()))
    measured = {RECOMMENDED: advice.measured, BASELINE: advice.baseline}
    versions = []
    for alias, levels in wanted.items():
        if of_seed := trained.get(levels):
            seed = min(common or of_seed)
            trial, settings = of_seed[seed], settings_of(of_seed[seed])
            mean = measured[alias]
            value = f" All trials of the plan: {mean.accuracy:.2f} {recipe.rule.metric}." if mean else ""
            text = f"Plan {settings.plan}. Trial {trial.name}, seed {seed}.{value}"
            files = (trial / "weights.safetensors", _whole_config(trial, settings))
            versions.append(Version(alias, trial, files, text))
    return versions


def _trained(recipe: Recipe, folder: StudyFolder) -> dict[tuple[str, ...], dict[int, Path]]:
    """Return levels -> seed -> trial, of trials with weights that MLflow knows, of the confirmation too."""
    found: dict[tuple[str, ...], dict[int, Path]] = {}
    for trial in sorted((*folder.path.glob("trials/*"), *folder.path.glob(f"{CONFIRMATION}/trials/*"))):
        status = read_status(trial)
        weights = (trial / "weights.safetensors").exists()
        if status.state == TrialState.COMPLETE and status.mlflow_run_id and weights:
            settings = settings_of(trial)
            levels = tuple(level_of(settings.plan[site]) for site in recipe.sites)
            found.setdefault(levels, {}).setdefault(settings.seed, trial)
    return found


def _whole_config(trial: Path, settings: TrialSettings) -> Path:
    """Write the config that builds a trial's model, with nothing to inherit from, into the trial's folder."""
    from pipeline.detector.inspection.plan_config import print_whole_config  # imports torch: seconds

    path = trial / "config.py"
    path.write_text(print_whole_config(settings.config, settings.plan, settings.overrides), encoding="utf-8")
    return path


def _config_of(folder: Path, console: Terminal, plan: Plan) -> str:
    """Return a plan as a config that derives from the one of the trials, after saying that it is run."""
    trials = sorted(folder.glob("trials/*/settings.json"))
    if not trials:
        raise StudyError(f"{folder} has no settings.json that names the model")
    from pipeline.detector.build import config_path  # imports torch: seconds
    from pipeline.detector.inspection.plan_config import print_config

    settings = settings_of(trials[0].parent)
    path = config_path(settings.config)
    console.print(f"Running {path}, to print the plan as a config.", soft_wrap=True)
    return print_config(path, plan, folder.resolve(), settings.overrides)


def write_verdicts(summary: Summary, folder: Path) -> StudyVerdicts:
    """Write the verdicts of a summary into a study's ``verdicts.json``, and return them."""
    verdicts = verdicts_of(summary)
    write_json(folder / VERDICTS, verdicts.to_dict())
    return verdicts


def verdicts_of(summary: Summary) -> StudyVerdicts:
    """Return what tracking shows of a summary; empty if its rows support no verdict."""
    evidence, advice = summary.evidence, summary.advice
    if evidence is None:
        return StudyVerdicts()
    return StudyVerdicts(
        tuple(_of_site(verdict) for verdict in evidence.verdicts),
        _recommended(advice, evidence) if advice else None,
        _settled(advice, evidence) if advice else "",
        {step: float(p.percent[0]) for step, p in evidence.price_by_step.items() if p.fixed_apart},
    )


def _of_site(v: Verdict) -> SiteVerdict:
    rate = _known(v.break_even.rate) if v.break_even else None
    return SiteVerdict(
        *(v.site, v.treatment, v.label, v.effect, _known(v.net), _known(v.slowdown_percent), rate),
        price=_known(v.price),
        gain_low=_known(v.low),
        gain_high=_known(v.high),
        net_gain_low=_known(v.net_low),
        net_gain_high=_known(v.net_high),
        price_low=_known(v.price_low),
        price_high=_known(v.price_high),
    )


def _recommended(advice: Recommendation, evidence: Evidence) -> RecommendedPlan:
    measured, baseline = advice.measured, advice.baseline
    return RecommendedPlan(
        plan=_spell(advice.best, evidence),
        utility=advice.best.utility,
        predicted_gain=advice.best.gain,
        predicted_accuracy=advice.accuracy,
        predicted_samples_per_s=_known(advice.samples_per_s),
        measured_gain=measured.accuracy - baseline.accuracy if measured and baseline else None,
        measured_accuracy=measured.accuracy if measured else None,
        measured_samples_per_s=_known(measured.samples_per_s) if measured else None,
    )


def _settled(advice: Recommendation, evidence: Evidence) -> str:
    if advice.settled is not None:
        return _spell(advice.settled, evidence)
    return "no bias" if advice.no_bias_wins else ""


def _spell(plan: Candidate, evidence: Evidence) -> str:
    rule = evidence.rule
    return f"{' or '.join(rule.treatments)} at {spell_levels(plan.levels, evidence.table.sites, rule)}"


def _known(value: float) -> float | None:
    """Return a number, or None if it is not finite."""
    return value if math.isfinite(value) else None
