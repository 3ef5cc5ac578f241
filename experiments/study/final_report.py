"""The report at the end of a study: written, printed, and its verdicts handed to tracking."""

import math
from functools import partial
from pathlib import Path

from experiments.analysis.decide import Evidence
from experiments.analysis.recommend import Candidate, Recommendation
from experiments.analysis.verdicts import Verdict
from experiments.reporting.report import print_report, write_report
from experiments.reporting.summary import Summary
from experiments.reporting.tables.base import spell_levels
from experiments.storage.study_folder import StudyError, settings_of, write_json
from experiments.terminal import Terminal
from pipeline.config.plan import Plan
from pipeline.tracking.study_verdicts import VERDICTS, RecommendedPlan, SiteVerdict, StudyVerdicts


def show_report(folder: Path, console: Terminal, figures: bool = True, config: bool = True) -> StudyVerdicts:
    """Judge a study, write its report and print the verdicts.

    Args:
        folder: the study.
        console: where the verdicts are printed.
        figures: also draw the figures, and write the page that shows them.
        config: also write the recommended plan as a config. Runs the config of the trials, which is code.

    Returns:
        The verdicts for tracking; ``verdicts.json`` holds them too.

    Raises:
        ReportError: the folder is no study, or has no rows.
        RowsError: a rows file is broken elsewhere than in its last line.
    """
    report = write_report(folder, partial(_config_of, folder, console) if config else None, figures)
    verdicts = write_verdicts(report.summary, folder)
    print_report(report, console)
    return verdicts


def _config_of(folder: Path, console: Terminal, plan: Plan) -> str:
    """Return a plan as a config that derives from the one of the trials, after saying that it is run."""
    trials = sorted(folder.glob("trials/*/settings.json"))
    if not trials:
        raise StudyError(f"{folder} has no settings.json that names the model")
    from pipeline.detector.build import config_path  # imports torch: seconds
    from pipeline.detector.inspection.plan_config import print_config

    path = config_path(settings_of(trials[0].parent).config)
    console.print(f"Running {path}, to print the plan as a config.", soft_wrap=True)
    return print_config(path, plan, folder.resolve())


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
