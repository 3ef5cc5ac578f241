"""From rows to the table that a linear model needs: one line per trial, one column per site and level.

The table names the trials that ran, that diverged, that were stopped early, that are missing, and the seeds
that wait for the next look. If too many are missing, the rows are refused with one sentence.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.row_checks import (
    enumerate_few,
    final_values,
    last_steps,
    one_plan_each,
    refuse_mixtures,
    refuse_unknown_metric,
)
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.factorial import Arm, level_of
from pipeline.config.early_stopping import STOPPED
from pipeline.config.plan import Choice, Plan
from pipeline.metrics.rows import Row, select

MOST_MISSING = 0.25
"""Share of the trials which a look adds that may be missing: as many as may have collapsed. The others judge
what they can tell apart; of more than that, it is the study that is missing."""


@dataclass(frozen=True)
class TrialRow:
    """One trial, as a line of the table.

    Attributes:
        name: the trial's name.
        seed: its block.
        levels: level per site of the table.
    """

    name: str
    seed: int
    levels: Arm


@dataclass(frozen=True)
class DesignTable:
    """The design of a study as it really ran.

    Attributes:
        sites: the factors.
        trials: all trials of the seeds that are judged, in the order of arms and seeds.
        diverged: names of the trials whose metric or loss is not finite.
        baseline: the level that the others are compared with.
        treatments: those others.
        stopped: trial -> step at which it was stopped early; its final metric is unknown (censored).
        look: which look this is, from 1.
        interim_analyses: numbers of seeds of all planned looks.
        waiting: seeds that have rows and are judged at a later look.
        missing: arm and seed of every trial of the judged seeds that has neither metric nor diverged.
        more_blocks: further columns that the model takes beside the seeds' blocks, each with one number per
            trial (``experiments.analysis.model.run_order``).
    """

    sites: tuple[str, ...]
    trials: tuple[TrialRow, ...]
    diverged: tuple[str, ...]
    baseline: str = "none"
    treatments: tuple[str, ...] = ("window",)
    stopped: dict[str, int] = field(default_factory=dict)
    look: int = 1
    interim_analyses: tuple[int, ...] = (1,)
    waiting: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    more_blocks: tuple[tuple[float, ...], ...] = ()

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The blocks."""
        return tuple(sorted({trial.seed for trial in self.trials}))

    @property
    def num_arms(self) -> int:
        """How many different plans there are."""
        return len({trial.levels for trial in self.trials})

    @cached_property
    def terms(self) -> tuple[tuple[str, str], ...]:
        """The terms of the linear model: (site, treatment) for every treatment that ran at the site."""
        return tuple(
            (site, level)
            for index, site in enumerate(self.sites)
            for level in self.treatments
            if any(trial.levels[index] == level for trial in self.trials)
        )

    @cached_property
    def treated(self) -> NDArray[np.float64]:
        """(trials, terms): 1 where the trial has the term's level at the term's site, else 0."""
        where = {site: index for index, site in enumerate(self.sites)}
        cells = [[trial.levels[where[s]] == level for s, level in self.terms] for trial in self.trials]
        return np.array(cells, dtype=float).reshape(len(self.trials), len(self.terms))

    @cached_property
    def blocks(self) -> NDArray[np.float64]:
        """(trials, seeds + more blocks): 1 where the trial has the seed, else 0; then ``more_blocks``."""
        of_seeds = [[float(t.seed == seed) for t in self.trials] for seed in self.seeds]
        return np.array([*of_seeds, *self.more_blocks], dtype=float).T

    @cached_property
    def arms(self) -> NDArray[np.float64]:
        """(trials, arms): 1 where the trial is of the arm, else 0."""
        arms = sorted({trial.levels for trial in self.trials})
        return np.array([[t.levels == arm for arm in arms] for t in self.trials], dtype=float)


def tabulate(rows: Sequence[Row], rule: DecisionRule) -> DesignTable:
    """Read the design off the rows, or refuse.

    Args:
        rows: the rows of one study.
        rule: its rule.

    Raises:
        AnalysisError: no rows, mixed circumstances, an unknown metric, a plan that varies in
            something the rule does not ask about, missing or doubled arms or seeds.
    """
    sites, present, diverged = ended_trials(rows, rule)
    stopped = {row.trial: int(row.value) for row in select(rows, metric=STOPPED, site="")}
    look, seeds, missing = _reached(present, sites, rule)
    judged = tuple(trial for trial in present if trial.seed in seeds)
    names = {trial.name for trial in judged}
    return DesignTable(
        sites,
        judged,
        tuple(trial.name for trial in judged if trial.name in diverged),
        rule.baseline,
        rule.treatments,
        {name: step for name, step in stopped.items() if name in names - diverged},
        look,
        rule.interim_analyses or (len(seeds),),
        tuple(sorted({trial.seed for trial in present} - set(seeds))),
        missing,
    )


def ended_trials(rows: Sequence[Row], rule: DecisionRule) -> tuple[tuple[str, ...], list[TrialRow], set[str]]:
    """Return the sites, the trials that have the rule's metric or diverged, and the names of the latter.

    Raises:
        AnalysisError: see ``tabulate``; missing arms and seeds are no reason yet.
    """
    if not rows:
        raise AnalysisError("there are no rows; run the study before asking for its verdicts")
    if not rule.treatments or not rule.baseline:
        raise AnalysisError("the rule names no treatment or no baseline; a recipe takes them from its design")
    refuse_mixtures(rows)
    refuse_unknown_metric(rows, rule)
    plans = one_plan_each(rows)
    sites = _varied_sites([plan for plan, _ in plans.values()], rule)
    trials = [TrialRow(name, seed, _levels(plan, sites)) for name, (plan, seed) in plans.items()]
    order = (rule.baseline, *rule.treatments)
    trials.sort(key=lambda trial: ([order.index(level) for level in trial.levels], trial.seed))
    values = final_values(rows, rule.metric, rule.condition)
    measured = last_steps(rows, rule.metric, rule.condition)
    bad = [row for row in select(rows, metric="loss") if not math.isfinite(row.value)]
    # After its last measurement: an early value may have been measured before the loss was not finite.
    diverged = {row.trial for row in bad if row.step > measured.get(row.trial, -1)}
    diverged |= {name for name, value in values.items() if not math.isfinite(value)}
    present = [trial for trial in trials if trial.name in values or trial.name in diverged]
    _refuse_unplanned(present, rule)
    return sites, present, diverged


def expected_arms(sites: Sequence[str], rule: DecisionRule) -> tuple[Arm, ...]:
    """Return what the design runs: the rule's arms, or all combinations of its levels."""
    return rule.arms or tuple(product((rule.baseline, *rule.treatments), repeat=len(sites)))


def spell_arm(arm: Sequence[str], sites: Sequence[str], rule: DecisionRule) -> str:
    """Name an arm by its treated sites: ``window at decoder.0.cross + decoder.2.cross``."""
    parts = []
    for level in rule.treatments:
        treated = [site for site, at_site in zip(sites, arm, strict=True) if at_site == level]
        parts += [f"{level} at {' + '.join(treated)}"] if treated else []
    return ", ".join(parts) or f"{rule.baseline} everywhere"


def _levels(plan: Plan, sites: Sequence[str]) -> Arm:
    return tuple(level_of(plan[site]) for site in sites)


def _varied_sites(plans: Sequence[Plan], rule: DecisionRule) -> tuple[str, ...]:
    names = [tuple(site for site, _ in plan.choices) for plan in plans]
    if len(set(names)) > 1:
        raise AnalysisError(
            "the plans of the trials name different sites; trials of one study share one model"
        )
    choices = {site: {plan[site] for plan in plans} for site in names[0]}
    if unknown := [site for site in rule.sites if site not in choices]:
        raise AnalysisError(f"the rule names {', '.join(unknown)}; the model has {', '.join(choices)}")
    sites = rule.sites or tuple(s for s, of_site in choices.items() if len(set(map(level_of, of_site))) > 1)
    if not sites:
        raise AnalysisError("no site's bias differs between the trials; a verdict needs some without it")
    for site, of_site in choices.items():
        _refuse_bad_choices(site, of_site, site in sites, rule)
    return sites


def _refuse_bad_choices(site: str, choices: set[Choice], asked: bool, rule: DecisionRule) -> None:
    spelled = ", ".join(sorted(map(str, choices)))
    if not asked and len(choices) > 1:
        raise AnalysisError(f"site {site} varies ({spelled}) but the rule does not ask about it")
    levels = set(map(level_of, choices))
    if asked and (levels - {rule.baseline, *rule.treatments} or len(choices) != len(levels)):
        raise AnalysisError(
            f"site {site} has the choices {spelled}; the rule compares {' and '.join(rule.treatments)} with "
            f"{rule.baseline}, each with one implementation"
        )


def _refuse_unplanned(trials: Sequence[TrialRow], rule: DecisionRule) -> None:
    if unplanned := [trial.name for trial in trials if rule.seeds and trial.seed not in rule.seeds]:
        raise AnalysisError(
            f"trial {enumerate_few(unplanned)} has a seed that the rule does not name ({rule.seeds})"
        )
    if unplanned := [trial.name for trial in trials if rule.arms and trial.levels not in rule.arms]:
        raise AnalysisError(
            f"trial {enumerate_few(unplanned)} is an arm that the design does not have; judge it on its own"
        )
    names: dict[tuple[Arm, int], list[str]] = defaultdict(list)
    for trial in trials:
        names[trial.levels, trial.seed].append(trial.name)
    if doubled := [" and ".join(group) for group in names.values() if len(group) > 1]:
        raise AnalysisError(f"{enumerate_few(doubled, 2)} are the same arm and seed; keep one of them")


def _reached(
    trials: Sequence[TrialRow], sites: tuple[str, ...], rule: DecisionRule
) -> tuple[int, tuple[int, ...], tuple[str, ...]]:
    """Return which look was reached, the seeds that it judges, and what is missing in them.

    A look is reached when at most a share ``MOST_MISSING`` of the trials that it adds is missing.
    """
    seeds = rule.seeds or tuple(sorted({trial.seed for trial in trials}))
    arms = expected_arms(sites, rule)
    present = {(trial.levels, trial.seed) for trial in trials}
    looks = rule.interim_analyses or (len(seeds),)
    missing: tuple[str, ...] = ()
    for look, (begin, end) in enumerate(pairwise((0, *looks)), 1):
        added = [(arm, seed) for seed in seeds[begin:end] for arm in arms]
        lacking = [cell for cell in added if cell not in present]
        if len(lacking) > MOST_MISSING * len(added):
            if look > 1:
                return look - 1, seeds[:begin], missing
            raise _too_few(lacking, len(added), sites, rule)
        missing += tuple(f"{spell_arm(arm, sites, rule)}, seed {seed}" for arm, seed in lacking)
    return len(looks), seeds[: looks[-1]], missing


def _too_few(
    lacking: Sequence[tuple[Arm, int]], total: int, sites: tuple[str, ...], rule: DecisionRule
) -> AnalysisError:
    spelled = [f"{spell_arm(arm, sites, rule)}, seed {seed}" for arm, seed in lacking[:3]]
    listed = "; ".join(spelled) + ("; ..." if len(lacking) > len(spelled) else "")
    return AnalysisError(
        f"{len(lacking)} of {total} trials lack {rule.metric} ({rule.condition}): "
        f"{listed}; finish the study with `biaswise study resume`"
    )
