"""A study of what the levels of a design do in a model's layers; study files are written with it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.factorial import Design, plan_of
from experiments.recipes.recipe import Recipe, trials_of
from pipeline.config.settings import TrialSettings


def layer_study(
    base: TrialSettings,
    design: Design,
    *,
    impls: Mapping[str, str],
    rest: Mapping[str, str],
    seeds: Sequence[int],
    rule: DecisionRule,
    **fields: Any,
) -> Recipe:
    """Return the study that trains every arm of a design with every seed, and is judged after each seed.

    Args:
        base: settings of all trials; its ``study`` is the name of the study, its plan does not count.
        design: arms.
        impls: level -> the implementation that computes it at the design's sites; a level such as
            ``window/lowrank@16`` names its own.
        rest: pattern of the other sites -> their choice.
        seeds: the blocks, in the order in which they run.
        rule: its sites, seeds, arms and looks are filled in, where it names none.
        fields: further fields of ``Recipe``, such as ``confirmation_seeds`` and ``early_stopping``.

    Raises:
        DesignError: a level has no implementation.
    """
    plans = {arm: plan_of(design, arm, rest, impls) for arm in design.arms}
    levels = dict.fromkeys(level for factor in design.factors for level in factor.levels)
    _, *treatments = levels
    made = Recipe(
        name=base.study,
        question=f"In which of {len(design.sites)} layers does {' or '.join(treatments)} pay off?",
        cost=f"{len(design.arms)} trainings a seed",
        trials=trials_of(design, base, seeds, plans),
        sites=design.sites,
        rule=replace(
            rule,
            sites=design.sites,
            seeds=tuple(seeds),
            arms=design.arms,
            interim_analyses=rule.interim_analyses or tuple(range(1, len(seeds) + 1)),
        ),
        design=design,
    )
    return replace(made, **fields)
