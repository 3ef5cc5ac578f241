"""Ranking layers from masks whose truth is planted, and what cannot be screened."""

from dataclasses import replace
from itertools import product

import pytest

from experiments.analysis.screening import INTERVENTION, masks, rank, screened
from experiments.recipes.mini import CROSS_SITES, demo, pretrain, smoke
from experiments.recipes.recipe import RecipeError
from pipeline.config.plan import Plan
from pipeline.metrics.rows import Row

RULE = demo().rule
WORTH = {"decoder.0.cross": 0.01, "decoder.1.cross": -0.02, "decoder.2.cross": 0.03}
TOGETHER = 0.004
"""What the first two sites are worth together, beyond the sum of both."""


def rows(condition="clean"):
    found = []
    for plan in masks(demo()):
        on = [site for site in CROSS_SITES if plan[site].bias == "window"]
        value = 0.4 + sum(WORTH[site] for site in on) + TOGETHER * ({*CROSS_SITES[:2]} <= {*on})
        found.append(
            Row("demo", "t", str(plan), INTERVENTION + "NDS", "fraction", value, condition=condition)
        )
    return found


def test_all_masks_are_there_and_the_whole_is_what_is_trained():
    plans = masks(demo())
    assert {tuple(plan[s].bias for s in CROSS_SITES) for plan in plans} == set(
        product(("none", "window"), repeat=3)
    )
    assert plans[-1] == screened(demo()).plan


def test_the_seed_is_neither_the_studys_nor_its_confirmations():
    recipe = replace(demo(), confirmation_seeds=(7, 9))
    assert screened(recipe).seed == 10
    assert screened(replace(recipe, confirmation_seeds=())).seed == 1 + max(demo().rule.seeds)


def test_sites_are_ranked_by_what_they_are_worth_over_all_masks():
    first, second, third = rank(rows(), CROSS_SITES, RULE)
    assert [one.site for one in (first, second, third)] == [CROSS_SITES[2], CROSS_SITES[0], CROSS_SITES[1]]
    assert first.effect == pytest.approx(3.0)
    assert second.effect == pytest.approx(1.0 + 0.2)  # half of the masks have the other site of the pair
    assert (second.alone, second.last) == (pytest.approx(1.0), pytest.approx(1.4))
    assert third.effect == pytest.approx(-2.0 + 0.2)


def test_other_conditions_are_ranked_by_their_own_rows():
    everything = rows() + [replace(row, value=0.1) for row in rows("no_lidar")]
    effects = [one.effect for one in rank(everything, CROSS_SITES, RULE, "no_lidar")]
    assert effects == pytest.approx([0.0] * 3)


def test_missing_masks_are_refused():
    with pytest.raises(
        RecipeError, match=r"3 of 8 masks have no NDS \(clean\); run `biaswise study screen` again"
    ):
        rank(rows()[3:], CROSS_SITES, RULE)


def test_a_recipe_without_a_rule_is_refused():
    with pytest.raises(RecipeError, match="recipe pretrain has no rule, so nothing says which bias"):
        screened(pretrain())


def test_a_site_that_never_varies_cannot_be_switched():
    never = replace(smoke(), sites=CROSS_SITES[:2])
    with pytest.raises(RecipeError, match=r"no trial has window at decoder\.1\.cross"):
        screened(never)


def test_masks_of_a_plan_with_patterns_keep_the_rest():
    for plan in masks(demo()):
        assert isinstance(plan, Plan)
        assert str(plan["decoder.*.self"]) == "none/sdpa_flash"
