"""The levels that a rule compares: of the design, unless it names them; checked before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.factorial import Design, level_of
from pipeline.config.plan import Plan

NO_BIAS = "none"
"""The baseline of a study without a design, if its trials have it."""


def levels_by_site(
    sites: Sequence[str], plans: Sequence[Plan], design: Design | None
) -> dict[str, list[str]]:
    """Return site -> its levels: in the order of the design, the baseline first; else of the plans."""
    if design is not None:
        return {factor.site: list(factor.levels) for factor in design.factors}
    return {site: list(dict.fromkeys(level_of(plan[site]) for plan in plans)) for site in sites}


def complete(rule: DecisionRule, levels: Mapping[str, Sequence[str]]) -> DecisionRule:
    """Return a rule that names its baseline and its treatments.

    Args:
        rule: what it does not name is taken from the levels.
        levels: site -> its levels.

    Raises:
        AnalysisError: the rule compares a level that no trial has, or trials have one that it does not
            compare.
    """
    if not levels:
        return rule
    baseline = rule.baseline or _baseline(levels)
    every = dict.fromkeys(level for of_site in levels.values() for level in of_site)
    treatments = rule.treatments or tuple(level for level in every if level != baseline)
    has = f"the trials have {'; '.join(f'{s}: {chr(44).join(found)}' for s, found in levels.items())}"
    if lacking := [site for site, found in levels.items() if baseline not in found]:
        raise AnalysisError(
            f"the rule compares with the baseline {baseline!r}, which {lacking[0]} never has; {has}"
        )
    if unknown := [level for level in treatments if level not in every]:
        raise AnalysisError(f"the rule compares {unknown[0]!r}, which no trial has; {has}")
    if unasked := [level for level in every if level not in (baseline, *treatments)]:
        raise AnalysisError(f"the rule does not compare {unasked[0]!r} with {baseline!r}; {has}")
    return replace(rule, baseline=baseline, treatments=treatments)


def _baseline(levels: Mapping[str, Sequence[str]]) -> str:
    """Return the level that the others are compared with, where the rule names none."""
    first = next(iter(levels.values()))[0]
    return NO_BIAS if all(NO_BIAS in found for found in levels.values()) else first
