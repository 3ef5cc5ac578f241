"""In which order trials run: random within a seed, the same at every start; and which place is free."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import norm

from experiments.packing.policy import LIMIT_FILE, cohort_limit
from experiments.recipes.mini import CROSS_SITES, IMPL, REST, demo, smoke_waves
from experiments.storage.study_folder import StudyError, StudyFolder
from experiments.study import tune_runner
from experiments.study.trial_order import cohorts_of, free_slot, in_running_order
from experiments.study.tune_runner import ExecutionOptions, run_cohort_driver, run_trials
from pipeline.config.early_stopping import EarlyStopping
from pipeline.config.plan import Plan


def treated(recipe, names):
    """(trials, sites): 1 where the trial has the bias at the site."""
    trials = recipe.named_trials()
    return np.array(
        [[trials[name].plan[s].bias != recipe.rule.baseline for s in recipe.sites] for name in names], float
    )


def test_every_trial_runs_once_and_seed_after_seed():
    recipe = smoke_waves()
    names = list(recipe.named_trials())
    ordered = in_running_order(recipe, names)
    assert sorted(ordered) == sorted(names)
    seeds = [recipe.named_trials()[name].seed for name in ordered]
    assert seeds == sorted(seeds)


def test_the_order_is_the_recipes_and_not_the_one_of_its_list():
    recipe = demo()
    names = list(recipe.named_trials())
    ordered = in_running_order(recipe, names)
    assert ordered != names
    assert in_running_order(recipe, names[::-1]) == ordered
    other = replace(recipe, rule=replace(recipe.rule, confidence=0.9))  # another digest, the same trials
    assert list(other.named_trials()) == names
    assert in_running_order(other, names) != ordered


def test_what_is_left_keeps_its_order():
    recipe = demo()
    ordered = in_running_order(recipe, list(recipe.named_trials()))
    left = ordered[1::3]
    assert in_running_order(recipe, left[::-1]) == left


def test_the_place_in_a_seed_tells_nothing_of_the_layers():
    """Over many digests the mean place of biased trials is that of the others, at every layer."""
    recipe = demo()
    names = list(recipe.named_trials())[:8]  # one seed
    studies = 400
    differences = []
    for number in range(studies):
        drawn = replace(recipe, rule=replace(recipe.rule, equivalence_margin=0.5 + number / 1000))
        design = treated(drawn, in_running_order(drawn, names))
        places = np.arange(8)
        differences.append([places[x == 1].mean() - places[x == 0].mean() for x in design.T])
    error = np.sqrt(6.0 * (1 / 4 + 1 / 4) / studies)  # places 0 to 7 have a variance of 6 (n - 1)
    assert np.abs(np.mean(differences, axis=0)).max() < norm.ppf(0.9999) * error


def test_trials_at_once_have_places_of_their_own_and_a_free_one_is_taken_again(tmp_path):
    together = Barrier(3)

    def place(_):
        with free_slot(tmp_path) as slot:
            together.wait(timeout=60)
            return slot

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(place, range(3))) == [0, 1, 2]
    with free_slot(tmp_path) as first, free_slot(tmp_path) as second:
        assert (first, second) == (0, 1)


@pytest.fixture
def study(tmp_path):
    recipe = smoke_waves()
    folder = StudyFolder(tmp_path / "runs" / recipe.name)
    folder.claim(recipe, {})
    return recipe, folder


def test_a_study_starts_its_trials_in_that_order(study, monkeypatch):
    recipe, folder = study
    started = []
    monkeypatch.setattr(tune_runner, "_tune", lambda recipe, folder, todo, *rest: started.extend(todo))
    names = list(recipe.named_trials())
    folder.finish(names[0])
    run_trials(recipe, folder, Console(file=io.StringIO()), ExecutionOptions(tracking=False), names)
    assert started == in_running_order(recipe, names[1:])


def test_a_driver_runs_what_has_not_ended_and_tells_it_its_place(study, monkeypatch):
    recipe, folder = study
    names = list(recipe.named_trials())[:3]
    folder.finish(names[1], "it broke")
    given = []
    monkeypatch.setattr(tune_runner, "run_under_ray", lambda run, *_: given.append(run))
    monkeypatch.setattr(tune_runner, "available_cores", lambda: 5)
    reported = []
    monkeypatch.setattr(tune_runner.tune, "report", reported.append)
    config = {"trials": names, "folder": str(folder.path), "recipe": recipe.digest}
    config |= {"early_stopping": EarlyStopping(), "running": ExecutionOptions(concurrent=2)}
    with free_slot(folder.path):
        run_cohort_driver(config)
    (run,) = given
    assert run.slot == 1
    assert run.cores == 2, "a half of this machine's"
    assert run.trials == {folder.trial(n): recipe.named_trials()[n] for n in (names[0], names[2])}
    run_cohort_driver(config | {"running": ExecutionOptions(gpu_hours=0.0)})
    assert len(given) == 1, "the study had no GPU hours left"
    assert [ended["left"] for ended in reported] == ["", "not run: the study has used its 0 GPU hours"]


class NoRay(Exception):
    """Ends a run before Ray starts."""


def no_ray(*_args, **_options):
    raise NoRay


def test_how_many_trials_fit_is_remembered_by_the_study(study, monkeypatch):
    recipe, folder = study
    names = list(recipe.named_trials())
    given, cohorts = [], []

    def halved(run, say, most, remember):
        given.append((len(run.trials), most))
        for fewer in (4, 2, 3):
            remember(fewer)

    monkeypatch.setattr(tune_runner, "run_under_ray", halved)
    monkeypatch.setattr(tune_runner.tune, "report", lambda _: None)
    config = {"folder": str(folder.path), "recipe": recipe.digest, "early_stopping": EarlyStopping()}
    config["running"] = running = ExecutionOptions(arms_per_worker=4, tracking=False)
    for trials in (names[:4], names[4:8]):  # both were made into cohorts before the first did not fit
        run_cohort_driver(config | {"trials": trials})
    assert given == [(4, sys.maxsize), (4, 2)]
    monkeypatch.setattr(tune_runner, "ray_session", no_ray)
    monkeypatch.setattr(tune_runner, "cohorts_of", lambda *a: cohorts.extend(cohorts_of(*a)) or [names])
    console = Console(file=io.StringIO(), width=500)
    with pytest.raises(NoRay):
        run_trials(recipe, folder, console, running, names[:8])
    assert [len(cohort) for cohort in cohorts] == [2, 2, 2, 2]
    assert "at most 2 trials run together: more did not fit into memory before" in console.file.getvalue()
    (folder.path / LIMIT_FILE).write_text('{"trials": 0}')
    with pytest.raises(StudyError, match="expected trials, a whole number from 1, got 0; delete it"):
        cohort_limit(folder)


def sizes(recipe, arms_per_worker, places, names=None):
    names = in_running_order(recipe, names or list(recipe.named_trials()))
    cohorts = cohorts_of(recipe, names, arms_per_worker, places)
    assert [name for cohort in cohorts for name in cohort] == names
    return [len(cohort) for cohort in cohorts]


def test_trials_of_a_seed_are_cohorts_of_equal_size():
    assert sizes(demo(), 1, 2) == [1] * 16
    assert sizes(demo(), 3, 2) == [2, 3, 3] * 2
    assert sizes(demo(), 8, 2) == [8, 8]
    assert sizes(demo(), 99, 2) == [8, 8]


def test_by_default_cohorts_keep_all_places_busy():
    assert sizes(demo(), None, 2) == [8, 8]  # two seeds on two cores: one each
    assert sizes(demo(), None, 1) == [8, 8]
    assert sizes(demo(), None, 4) == [4, 4, 4, 4]
    one_seed = list(demo().named_trials())[:8]
    assert sizes(demo(), None, 2, one_seed) == [4, 4]
    assert sizes(demo(), None, 2, one_seed[:1]) == [1]


def test_no_cohort_is_larger_than_most_unless_it_is_asked_for():
    base = demo().trials[0]
    plans = [Plan.of(REST | dict.fromkeys(CROSS_SITES, f"window:{1 + width}/{IMPL}")) for width in range(24)]
    recipe = replace(demo(), trials=tuple(replace(base, plan=plan) for plan in plans), rule=None)
    assert sizes(recipe, None, 1) == [12, 12]
    assert sizes(recipe, 24, 1) == [24]


def test_trials_that_differ_in_more_than_their_plan_are_in_different_cohorts():
    recipe = demo()
    longer = replace(recipe.trials[0].train, steps=41)
    mixed = replace(
        recipe, trials=(*recipe.trials[:4], *(replace(t, train=longer) for t in recipe.trials[4:8]))
    )
    for cohort in cohorts_of(mixed, in_running_order(mixed, list(mixed.named_trials())), None, 1):
        steps = {mixed.named_trials()[name].train.steps for name in cohort}
        assert (len(cohort), len(steps)) == (4, 1)


def test_the_size_of_cohorts_is_in_no_digest():
    assert replace(demo(), arms_per_worker=3).digest == demo().digest
