from dataclasses import replace

import pytest

from experiments.recipes import CROSS_SITES, RECIPES, RecipeError, demo, factorial, pretrain, recipe
from pipeline.plan import PlanError
from pipeline.settings import TrialSettings

MINI_SITES = ["aqr.0.cross"] + [f"decoder.{i}.{kind}" for i in range(3) for kind in ("self", "cross")]


def test_demo_is_a_full_factorial_with_two_seeds():
    arms = {(s.seed, tuple(s.plan[site].bias for site in CROSS_SITES)) for s in demo().trials}
    assert len(demo().trials) == len(arms) == 2 * 2**3
    assert {bias for _, arm in arms for bias in arm} == {"none", "window"}


def test_demo_trials_differ_in_plan_and_seed_alone():
    trials = demo().trials
    assert {replace(s, plan=trials[0].plan, seed=0) for s in trials} == {trials[0]}


@pytest.mark.parametrize("name", RECIPES)
def test_every_plan_names_every_site_of_the_mini_model(name):
    for settings in recipe(name).trials:
        for plan in (settings.plan, *settings.mix):
            assert [site for site, _ in plan.resolve(MINI_SITES).choices] == MINI_SITES


def test_pretraining_favours_no_arm_of_the_demo():
    (settings,) = pretrain().trials
    assert {settings.plan, *settings.mix} == {s.plan for s in demo().trials} == set(factorial())
    assert len(settings.mix) == 7


def test_pretraining_never_sees_the_demo_world():
    seen = {world.seed for world in pretrain().worlds}
    assert not seen & {world.seed for world in demo().worlds}
    assert not {world.root for world in pretrain().worlds} & {world.root for world in demo().worlds}


def test_every_trial_reads_a_world_of_its_recipe():
    for name in RECIPES:
        found = recipe(name)
        roots = {world.root for world in found.worlds}
        assert all({s.data.val, *s.data.train} <= roots for s in found.trials)


def test_digest_covers_settings_and_rule_and_world():
    base = demo()
    assert base.digest == demo().digest
    longer = replace(base.trials[0], seed=9)
    assert replace(base, trials=(longer, *base.trials[1:])).digest != base.digest
    assert base.rule is not None
    assert replace(base, rule=replace(base.rule, confidence=0.9)).digest != base.digest
    assert replace(base, worlds=(replace(base.worlds[0], seed=8),)).digest != base.digest


def test_concurrency_is_no_part_of_the_digest():
    assert replace(demo(), concurrent_trials=1).digest == demo().digest


def test_trial_names_are_readable_and_unique():
    names = list(demo().named_trials())
    assert len(set(names)) == 16
    assert names[1].startswith("none-none-window_s0_")


def test_settings_survive_json():
    for settings in demo().trials:
        assert TrialSettings.from_dict(settings.to_dict()) == settings


def test_two_equal_trials_are_refused():
    with pytest.raises(RecipeError, match="is in it twice"):
        replace(demo(), trials=(demo().trials[0],) * 2)


def test_a_factor_that_no_plan_names_is_refused():
    with pytest.raises(PlanError, match=r"no site 'decoder\.7\.cross'"):
        replace(demo(), factors=("decoder.7.cross",))


def test_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match="no recipe 'nope'; there are demo, "):
        recipe("nope")
