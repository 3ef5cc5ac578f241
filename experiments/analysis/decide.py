"""Rows in, verdicts out: which sites' bias pays off, by a rule fixed before the first trial.

A pure function: no files, no clock, no GPU. ``design_table`` reads the design from the rows,
``model`` fits what each site gains, ``price`` what it costs, and ``verdicts`` weighs both.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from experiments.analysis.decision.levels import joint_quantile, shares_spent, single_quantile
from experiments.analysis.design_table import DesignTable, tabulate
from experiments.analysis.model.aliasing import aliases
from experiments.analysis.model.failures import Failures, count_failures
from experiments.analysis.model.fit import Fit, Interaction
from experiments.analysis.model.linear_model import fit_gain
from experiments.analysis.model.run_order import about_run_order
from experiments.analysis.price import price_of
from experiments.analysis.price_model import Price
from experiments.analysis.responses import respond
from experiments.analysis.row_checks import enumerate_few
from experiments.analysis.verdicts import Verdict, judge
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from pipeline.metrics.rows import Row

OTHER_METRICS = ("NDS", "mAP")
"""Metrics whose effects are estimated as well as those of the rule's metric, if all trials have them."""


@dataclass(frozen=True)
class Effect:
    """The effect of one treatment at one site on one metric under one condition.

    Attributes:
        site, metric, condition: which.
        effect: treatment minus baseline, points (100 times the fraction).
        low, high: its interval, points; on one metric under one condition the intervals of all sites hold
            together at the rule's confidence.
        treatment: the level that is compared with the baseline.
    """

    site: str
    metric: str
    condition: str
    effect: float
    low: float
    high: float
    treatment: str = ""


@dataclass(frozen=True)
class Evidence:
    """Verdicts with all numbers from which they follow.

    Attributes:
        rule: the rule that was applied.
        table: the design as it ran.
        verdicts: one per site and treatment.
        effects: on the rule's metric, one per site, treatment and condition; only those of the rule's
            condition get verdicts.
        residual_df: degrees of freedom left to estimate the noise.
        noise: standard deviation of one trial's metric, points.
        notes: sentences for the reader: trials left out, conditions without an estimate.
        other_effects: the same for NDS and mAP, whichever is not the rule's metric.
        interactions: pairs of sites, where the design supports them; each interval has the rule's
            confidence by itself.
        aliases: groups of effects the design cannot tell apart; ``a:b`` is the interaction of a and b.
        num_scenes: scenes that were resampled; 0 if the verdict is about the validation scenes as they are.
        scene_share: per verdict, the share of the squared error of its gain that is due to the scenes.
        spent: share of the error probability that the looks so far have spent, 0 to 1.
        gain: the fitted gains, points.
        price: what the rule prices; None if it is not known, and then no verdict is settled.
        price_by_step: kind of step (training, inference) -> its price.
        failures: failed trainings of every site and treatment.
    """

    rule: DecisionRule
    table: DesignTable
    gain: Fit = field(compare=False)  # arrays; the verdicts hold its numbers
    price: Price | None = field(compare=False)
    verdicts: tuple[Verdict, ...]
    effects: tuple[Effect, ...]
    residual_df: int
    noise: float
    notes: tuple[str, ...]
    other_effects: tuple[Effect, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    aliases: tuple[tuple[str, ...], ...] = ()
    num_scenes: int = 0
    scene_share: tuple[float, ...] = ()
    spent: float = 1.0
    price_by_step: Mapping[str, Price] = field(default_factory=dict, compare=False)
    failures: tuple[Failures, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether every verdict is settled."""
        return all(verdict.settled for verdict in self.verdicts)


def decide(rows: Sequence[Row], rule: DecisionRule, timed: Sequence[Row] = ()) -> list[Verdict]:
    """Return the verdict of every site; ``weigh`` returns the numbers as well.

    Raises:
        AnalysisError: the rows do not support a verdict; the message gives the reason and the remedy.
    """
    return list(weigh(rows, rule, timed).verdicts)


def weigh(rows: Sequence[Row], rule: DecisionRule, timed: Sequence[Row] = ()) -> Evidence:
    """Estimate every site's effect and price and judge them by the rule.

    Args:
        rows: the rows of one study.
        rule: its rule.
        timed: rows of the stopwatch; without them a rule that is priced by it settles nothing.

    Raises:
        AnalysisError: the rows do not support a verdict; the message gives the reason and the remedy.
    """
    table = tabulate(rows, rule)
    scores = _scores(rows)
    judged = scores[rule.metric, rule.condition]
    gain = fit_gain(respond(judged, table, rule, rule.metric, rule.condition), table)
    prices = price_of(rows, table, rule, timed)
    failures = count_failures(table, gain.collapsed)
    about_order = about_run_order(rows, table, rule, gain.collapsed)
    effects, missing = _effects(scores, table, rule, rule.metric)
    others = [_effects(scores, table, rule, metric)[0] for metric in OTHER_METRICS if metric != rule.metric]
    return Evidence(
        rule=rule,
        table=table,
        gain=gain,
        price=prices.judged,
        verdicts=judge(table, gain, prices.judged, rule, failures),
        effects=tuple(effects),
        residual_df=gain.residual_df,
        noise=gain.noise,
        notes=(*_left_out(table, gain), *missing, *prices.notes, *about_order, *_about_scenes(gain)),
        other_effects=tuple(effect for group in others for effect in group),
        interactions=_interactions(gain, table, rule),
        aliases=aliases(table),
        num_scenes=gain.num_scenes,
        scene_share=tuple(map(float, gain.scene_share)),
        spent=shares_spent(table.interim_analyses, table.look, rule),
        price_by_step=prices.by_step,
        failures=failures,
    )


def _effects(
    scores: Mapping[tuple[str, str], list[Row]], table: DesignTable, rule: DecisionRule, metric: str
) -> tuple[list[Effect], list[str]]:
    """Return the effects on a metric under every condition, and a note for each condition without any."""
    effects, notes = [], []
    measured = {condition for name, condition in scores if name == metric}
    others = measured - {rule.condition, ""}
    for condition in [*sorted(measured & {rule.condition}), *sorted(others)]:
        try:
            rows = scores[metric, condition] + (scores[rule.metric, rule.condition] if table.stopped else [])
            fit = fit_gain(respond(rows, table, rule, metric, condition), table)
        except AnalysisError as error:
            notes.append(f"No effects under the condition {condition}: {error}.")
            continue
        margin = joint_quantile(fit.df, table, rule) * fit.error
        for (site, treatment), value, half in zip(table.terms, fit.effect, margin, strict=True):
            low, high = float(value - half), float(value + half)
            effects.append(Effect(site, metric, condition, float(value), low, high, treatment))
    return effects, notes


def _scores(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return (metric, condition) -> rows of the whole model in the unit fraction, the draws included.

    A study has many rows, most of them of draws, so they are sorted once.
    """
    scores: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.unit == "fraction" and not row.site:
            scores[row.metric, row.condition].append(row)
    return dict(scores)


def _interactions(gain: Fit, table: DesignTable, rule: DecisionRule) -> tuple[Interaction, ...]:
    wide = single_quantile(np.array([pair.df for pair in gain.interactions]), table, rule)
    return tuple(
        replace(pair, low=float(pair.effect - q * pair.error), high=float(pair.effect + q * pair.error))
        for pair, q in zip(gain.interactions, wide, strict=True)
    )


def _left_out(table: DesignTable, gain: Fit) -> list[str]:
    notes = [f"Left out because it diverged: {name}." for name in table.diverged]
    notes += [
        f"Left out because it collapsed, far below what the others lead to expect: {name}."
        for name in gain.collapsed
    ]
    if table.stopped:
        notes.append(
            f"Stopped early and counted as censored: {len(table.stopped)} of {len(table.trials)} trials "
            f"({enumerate_few(sorted(table.stopped))})."
        )
    notes += [
        f"All trials with {level} at {site} were stopped early: its effect is taken from where they stopped."
        for site, level in gain.carried
    ]
    if table.missing:
        total = len(table.trials) + len(table.missing)
        notes.append(f"{len(table.missing)} of {total} trials are missing: {enumerate_few(table.missing)}.")
    if table.waiting:
        seeds = ", ".join(map(str, table.waiting))
        notes.append(f"Not judged yet, because the next look comes later: seed {seeds}.")
    return notes


def _about_scenes(gain: Fit) -> list[str]:
    if gain.num_scenes:
        return []
    return ["The verdicts are about these validation scenes: too few to be resampled, or not resampled."]
