from dataclasses import replace

import pytest

from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.factorial import Factor, full, plan_of
from experiments.recipes.fine_tuning import KEPT_STATISTICS
from experiments.recipes.mini import CROSS_SITES, demo, demo_waves, factorial, pretrain, smoke, smoke_waves
from experiments.recipes.nuscenes import r50, r50_waves
from experiments.recipes.recipe import EarlyStoppingRule, RecipeError, trials_of
from experiments.recipes.registry import RECIPES, recipe
from pipeline.config.plan import Choice, PlanError
from pipeline.config.settings import TrialSettings


def test_demo_is_a_full_factorial_with_two_seeds():
    arms = {(s.seed, tuple(s.plan[site].bias for site in CROSS_SITES)) for s in demo().trials}
    assert len(demo().trials) == len(arms) == 2 * 2**3
    assert {bias for _, arm in arms for bias in arm} == {"none", "window"}


def test_demo_trials_differ_in_plan_and_seed_alone():
    trials = demo().trials
    assert {replace(s, plan=trials[0].plan, seed=0) for s in trials} == {trials[0]}


def sites(num_layers):
    return ["aqr.0.cross"] + [f"decoder.{i}.{kind}" for i in range(num_layers) for kind in ("self", "cross")]


def test_arms_that_differ_in_the_window_alone_are_arms():
    base, site = smoke().trials[0], CROSS_SITES[0]
    levels = ("none", "window", "window:7", "gaussian:3")
    design = full([Factor(site, levels)])
    rest = {s: str(base.plan[s]) for s, _ in base.plan.choices if s != site}
    plans = {arm: plan_of(design, arm, rest) for arm in design.arms}
    trials = trials_of(design, base, (0, 1), plans)
    rule = DecisionRule(sites=(site,), seeds=(0, 1), arms=design.arms, treatments=levels[1:])
    made = replace(smoke(), trials=trials, sites=(site,), rule=rule, design=design)
    assert {arm for arm, _ in made.by_arm()} == {(level,) for level in levels}
    assert made.plan(("window:7",))[site] == Choice("window", "sdpa_math", window=7)
    assert {name.partition("_")[0] for name in made.named_trials()} == {
        "none",
        "window",
        "window7",
        "gaussian3",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_plan_names_every_site_of_its_model(name):
    for settings in recipe(name).trials:
        every = sites(3 if "mini" in settings.config else 6)
        for plan in (settings.plan, *settings.plan_mixture):
            assert [site for site, _ in plan.resolve(every).choices] == every


def biases(plans):
    """Return the bias kinds of the cross-attentions of every plan."""
    return {tuple(plan[site].bias for site in CROSS_SITES) for plan in plans}


def test_pretraining_favours_no_arm_of_the_demo():
    (settings,) = pretrain().trials
    assert {settings.plan, *settings.plan_mixture} == set(factorial(gpu=True))
    assert biases(factorial(gpu=True)) == biases(s.plan for s in demo().trials)
    assert len(settings.plan_mixture) == 7


@pytest.mark.parametrize("name", [name for name in RECIPES if recipe(name).rule is not None])
def test_trials_that_start_from_trained_weights_keep_their_statistics(name):
    for settings in recipe(name).trials:
        assert (KEPT_STATISTICS in settings.overrides) == bool(settings.init_checkpoint)


def test_pretraining_never_sees_the_demo_world():
    seen = {dataset.seed for dataset in pretrain().datasets}
    assert not seen & {dataset.seed for dataset in demo().datasets}
    assert not {dataset.root for dataset in pretrain().datasets} & {
        dataset.root for dataset in demo().datasets
    }


def test_every_trial_reads_a_world_of_its_recipe():
    for name in RECIPES:
        found = recipe(name)
        roots = {dataset.root for dataset in found.datasets} or {"data/nuscenes"}
        assert all({s.data.val, *s.data.train} <= roots for s in found.trials)


def test_digest_covers_settings_and_rule_and_world():
    base = demo()
    assert base.digest == demo().digest
    longer = replace(base.trials[0], seed=9)
    assert replace(base, trials=(longer, *base.trials[1:])).digest != base.digest
    assert base.rule is not None
    assert replace(base, rule=replace(base.rule, confidence=0.9)).digest != base.digest
    assert replace(base, datasets=(replace(base.datasets[0], seed=8),)).digest != base.digest


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concurrent_trials": 0}, "concurrent_trials is 0; expected 1 or more"),
        ({"arms_per_worker": -1}, "arms_per_worker is -1; expected 1 or more"),
        ({"confirmation_seeds": (100, 101, 100)}, "names a seed twice"),
    ],
)
def test_numbers_that_a_study_would_trip_over_later_are_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        replace(demo_waves(), **changes)


def test_a_factor_that_no_plan_names_is_refused():
    with pytest.raises(PlanError, match=r"no site 'decoder\.7\.cross'"):
        replace(demo(), sites=("decoder.7.cross",))


def test_the_settings_of_the_demo_are_those_of_its_documented_trials():
    # a change renames what has run: it needs a note in the changelog
    assert [settings.digest for settings in demo().trials[:3]] == [
        "cb454fa85b2b",
        "85feb384ea1c",
        "0bafd63bddeb",
    ]
    assert [settings.digest for settings in smoke().trials] == ["18db4d6cb95b", "8df4fc28a742"]


def test_sequential_recipes_hold_every_arm_of_every_seed():
    for found in (demo_waves(), smoke_waves(), r50_waves()):
        assert set(found.by_arm()) == {(arm, s) for arm in found.design.arms for s in found.rule.seeds}
    assert r50_waves().design.resolution == 4
    assert len(r50_waves().design.arms) * 4 == len(r50().design.arms if r50().design else r50().trials) // 3


def test_changes_of_early_stopping_and_confirmation_change_the_digest():
    base = smoke_waves()
    assert replace(base, early_stopping=EarlyStoppingRule((1,))).digest != base.digest
    assert replace(base, early_stopping=None).digest != base.digest
    assert replace(base, confirmation_seeds=(7,)).digest != base.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confirmation_seeds": (1,)}, "confirmation needs fresh seeds, and 1 is used"),
        ({"rule": None}, "a design needs a rule that names its seeds"),
        ({"trials": smoke_waves().trials[1:]}, "not every arm of its design with every seed"),
        (
            {"early_stopping": EarlyStoppingRule((3,))},
            r"early stopping after step 3 is too late for trials of 3; .*early_stopping=none",
        ),
        ({"design": None}, "early stopping needs waves, hence a design"),
        ({"rule": replace(smoke_waves().rule, arms=(("none", "none"),))}, "name different arms"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        replace(smoke_waves(), **changes)


def test_bad_early_stopping_is_refused():
    for steps in ((), (0,), (4, 2)):
        with pytest.raises(RecipeError, match="expected increasing steps, from 1"):
            EarlyStoppingRule(steps)
    with pytest.raises(RecipeError, match=r"a margin of -1\.0 points"):
        EarlyStoppingRule((1,), -1.0)


def test_more_workers_keep_the_batch():
    spread = demo().with_workers(2)
    assert {(s.num_workers, s.train.batch_size) for s in spread.trials} == {(2, 1)}
    with pytest.raises(RecipeError, match="a batch of 2 cannot be shared equally by 3 workers"):
        demo().with_workers(3)
    with pytest.raises(RecipeError, match="0 workers a trial: expected 1 or more"):
        demo().with_workers(0)


def test_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match="no recipe 'nope'; there are demo, "):
        recipe("nope")


def of_levels(*levels, **rule):
    """A study of one site with these levels, and a rule that names no more than it is told."""
    base, site = smoke().trials[0], CROSS_SITES[0]
    design = full([Factor(site, levels)])
    rest = {s: str(base.plan[s]) for s, _ in base.plan.choices if s != site}
    trials = trials_of(design, base, (0, 1), {arm: plan_of(design, arm, rest) for arm in design.arms})
    made = DecisionRule(sites=(site,), seeds=(0, 1), arms=design.arms, **rule)
    return replace(smoke(), trials=trials, sites=(site,), rule=made, design=design)


def test_treatments_and_baseline_are_those_of_the_design_unless_the_rule_names_them():
    assert of_levels("none", "gaussian").rule.treatments == ("gaussian",)
    assert of_levels("window", "gaussian", "none").rule.baseline == "none"
    assert of_levels("window", "gaussian").rule.baseline == "window"
    named = of_levels("none", "window", "gaussian", treatments=("gaussian", "window"), baseline="none").rule
    assert named.treatments == ("gaussian", "window")
    assert (demo().rule.treatments, demo().rule.baseline) == (("window",), "none"), (
        "without a design: of the trials"
    )


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (
            {"treatments": ("window",)},
            r"compares 'window', which no trial has; .*decoder\.0\.cross: none,gaussian",
        ),
        (
            {"baseline": "global"},
            r"the baseline 'global', which decoder\.0\.cross never has; the trials have",
        ),
        ({"baseline": "gaussian", "treatments": ("gaussian",)}, "with itself"),
    ],
)
def test_a_rule_about_levels_that_no_trial_has_is_refused_before_anything_runs(rule, sentence):
    with pytest.raises(ValueError, match=sentence):
        of_levels("none", "gaussian", **rule)


def test_levels_that_the_rule_does_not_compare_are_refused():
    with pytest.raises(
        RecipeError, match=r"the rule does not compare 'gaussian' with 'none'; the trials have"
    ):
        of_levels("none", "window", "gaussian", treatments=("window",))
