"""In which order trials run: random within a seed, the same at every start; and which place is free."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import norm

from experiments.recipes.mini import demo, smoke_waves
from experiments.storage.study_folder import StudyFolder
from experiments.study import tune_runner
from experiments.study.trial_order import free_slot, in_running_order
from experiments.study.tune_runner import ExecutionOptions, run_trial_driver, run_trials
from pipeline.config.early_stopping import EarlyStopping
from pipeline.ray_train.launch import Finished


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


def test_a_driver_tells_the_trial_its_place(study, monkeypatch):
    recipe, folder = study
    given = []
    monkeypatch.setattr(tune_runner, "run_under_ray", lambda *asked: given.append(asked[-1]) or Finished())
    monkeypatch.setattr(tune_runner.tune, "report", lambda ended: None)
    config = {
        **{"trial": next(iter(recipe.named_trials())), "folder": str(folder.path), "recipe": recipe.digest},
        **{"early_stopping": EarlyStopping().to_dict(), "gpu_share": 1.0, "gpu_hours": 1.0},
        **{"hang_timeout_s": 0.0, "study_sync": None},
    }
    with free_slot(folder.path):
        run_trial_driver(config)
    assert given == [1]
