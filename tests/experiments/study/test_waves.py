"""What a sequential study asks for next, from files alone: planted rows stand in for trainings."""

import io
import json
import os
import time
from dataclasses import replace

import pytest
from rich.console import Console

from experiments.analysis.decide import weigh
from experiments.analysis.recommend import recommend
from experiments.packing.planner import PackingPlan
from experiments.packing.policy import FILE as PACKING
from experiments.packing.policy import PackingRequest, packing_of, with_packing
from experiments.recipes.decision_rule import AnalysisError
from experiments.recipes.mini import CROSS_SITES, demo, smoke_waves
from experiments.recipes.overrides import with_init
from experiments.storage.study_folder import StudyError, StudyFolder, write_json
from experiments.storage.usage import used_by
from experiments.study.confirmation_run import (
    NEXT,
    NONE,
    RECOMMENDED,
    SETTLED_PLAN,
    arms_of,
    confirmation,
    confirmed,
)
from experiments.study.next_wave import SETTLED, SPENT, Budget, Wave
from experiments.study.tune_runner import ExecutionOptions
from experiments.study.waves import FILE, early_stopping_of, ended_rows, run_waves
from pipeline.config.plan import Plan
from pipeline.metrics.rows import Row, append_rows
from pipeline.storage.trial_sessions import begin_session
from pipeline.storage.trial_status import TrialSession, TrialState
from tests.experiments.planted_rows import Truth, plant
from tests.statuses import write_status

SITES = CROSS_SITES[:2]
CLEAR = Truth({SITES[0]: 6.0, SITES[1]: -6.0}, seeds=(0, 1, 2), noise=0.05, seed_noise=0.1)
VAGUE = replace(CLEAR, gain={SITES[0]: 0.2, SITES[1]: 0.0}, noise=2.0)
SECOND = Wave(2, (), SETTLED, "")
EVERY_SITE = ["aqr.0.cross"] + [f"decoder.{i}.{kind}" for i in range(3) for kind in ("self", "cross")]


@pytest.fixture
def recipe():
    """The price is that of the planted trials: no stopwatch runs here."""
    waves = smoke_waves()
    return replace(waves, rule=replace(waves.rule, priced_by="trials"))


@pytest.fixture
def folder(tmp_path, recipe):
    made = StudyFolder(tmp_path / "runs" / recipe.name)
    made.claim(recipe, {})
    return made


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=300)


def rows_of(recipe, truth, seeds):
    """Planted rows under the names and plans of a recipe's trials, with an early value as well."""
    for row in plant(
        truth, draw=1, base=Row(recipe.name, "", "", "", "", 0.0, step=3, recipe_digest=recipe.digest)
    ):
        arm = tuple(Plan.parse(row.plan)[site].bias for site in recipe.sites)
        if row.seed in seeds:
            name = recipe.by_arm()[arm, row.seed]
            plan = recipe.named_trials()[name].plan.resolve(EVERY_SITE)
            yield replace(row, trial=name, plan=str(plan))
            if row.metric == "NDS":
                yield replace(row, trial=name, plan=str(plan), step=2, value=row.value - 0.1)


def end(recipe, folder, truth, seeds):
    """Write the rows of all trials with these seeds, and mark them done."""
    for row in rows_of(recipe, truth, seeds):
        append_rows(folder.trial(row.trial) / "rows.jsonl", [row])
    for (_, seed), name in recipe.by_arm().items():
        if seed in seeds:
            folder.finish(name)


def waves(folder):
    return json.loads((folder.path / FILE).read_text())


def test_a_study_ends_when_all_is_settled(recipe, folder, console):
    end(recipe, folder, CLEAR, (0, 1))
    ending = run_waves(recipe, folder, console, ExecutionOptions(), Budget(100))
    assert (ending.reason, ending.outcome.ran) == ("Every verdict is settled after 2 seeds.", 0)
    assert ending.outcome.complete


def test_a_study_that_is_not_settled_ends_with_its_seeds(recipe, folder, console):
    end(recipe, folder, VAGUE, (0, 1, 2))
    ending = run_waves(recipe, folder, console, ExecutionOptions(), Budget(100))
    assert ending.reason == "All 3 seeds that the rule allows have run."


def test_the_budget_ends_a_study_before_a_look_it_does_not_reach(recipe, folder, console):
    end(recipe, folder, VAGUE, (0, 1))
    ending = run_waves(recipe, folder, console, ExecutionOptions(), Budget(11))
    assert ending.reason == "Look 3 needs 12 trials in all, and the budget is 11."
    assert ending.outcome.complete


def test_a_budget_below_the_first_look_is_refused_before_anything_runs(recipe, folder, console):
    with pytest.raises(
        AnalysisError, match="look 1 needs 4 trials in all, and the budget is 3; without a first"
    ):
        run_waves(recipe, folder, console, ExecutionOptions(), Budget(3))


@pytest.mark.parametrize(("trials", "hours"), [(0, 1.0), (-3, 1.0), (4, 0.0), (4, -1.0)])
def test_a_budget_that_buys_nothing_is_refused(trials, hours):
    with pytest.raises(AnalysisError, match=r"the budget is .*; expected more than 0"):
        Budget(trials, hours)


def test_the_first_wave_is_measured_early_and_stopped_nowhere(recipe):
    early_stopping = early_stopping_of(recipe, [], Wave(1, (), SETTLED, ""))
    assert (early_stopping.metric, early_stopping.condition, early_stopping.thresholds) == (
        "NDS",
        "clean",
        ((2, None),),
    )


def test_the_floor_is_the_worst_of_earlier_waves_less_the_margin(recipe):
    rows = list(rows_of(recipe, CLEAR, (0, 1)))
    worst = min(row.value for row in rows if row.metric == "NDS" and row.step == 2 and row.seed == 0)
    ((step, floor),) = early_stopping_of(recipe, rows, SECOND).thresholds  # seed 1 is of this wave
    assert (step, floor) == (2, pytest.approx(worst - 0.05))
    assert early_stopping_of(replace(recipe, early_stopping=None), rows, SECOND).thresholds == ()


def test_half_a_trial_says_nothing(recipe, folder):
    end(recipe, folder, CLEAR, (0,))
    whole = ended_rows(recipe, folder)
    for row in rows_of(recipe, CLEAR, (1,)):
        append_rows(folder.trial(row.trial) / "rows.jsonl", [row])  # killed before its end
    assert ended_rows(recipe, folder) == whole
    broken, diverged, *_ = (recipe.by_arm()[arm, 1] for arm in recipe.design.arms)
    for name in (broken, diverged):
        folder.finish(name, "it broke")
    (lost,) = [r for r in rows_of(recipe, CLEAR, (1,)) if r.trial == diverged and r.metric == "step_ms"]
    lost = replace(lost, metric="loss", value=float("nan"), step=3)
    append_rows(folder.trial(diverged) / "rows.jsonl", [lost])
    (kept,) = [row for row in ended_rows(recipe, folder) if row not in whole]
    assert (kept.trial, kept.metric) == (diverged, "loss")


def test_the_waves_are_written_down_alike_however_often_it_was_begun(recipe, folder, console):
    end(recipe, folder, VAGUE, (0,))
    begun = {"look": 1, "state": "run", "reason": "the first wave", "alpha_spent": 0.0}
    begun["trials"] = list(recipe.named_trials())[:4]
    write_json(folder.path / FILE, {"waves": [begun]})
    end(recipe, folder, VAGUE, (1, 2))
    run_waves(recipe, folder, console, ExecutionOptions(), Budget(100))
    once = waves(folder)
    assert once["ended"]["state"] == SPENT
    run_waves(recipe, folder, console, ExecutionOptions(), Budget(100))
    assert waves(folder) == once


def test_gpu_hours_count_what_a_killed_session_used(recipe, folder):
    name = recipe.trial_name(recipe.trials[0])
    now = time.time()
    write_status(folder.trial(name), TrialState.RUNNING, sessions=(TrialSession(now - 7200, 0.5),))
    rows = folder.trial(name) / "rows.jsonl"
    rows.write_text("")
    os.utime(rows, (now - 3600, now - 3600))  # its last sign of life, an hour after it began
    assert folder.state(name) == TrialState.RUNNING
    assert folder.gpu_hours() == pytest.approx(0.5, abs=0.01)
    begin_session(folder.trial(name), gpus=1.0)
    folder.finish(name)
    used = used_by(folder.trial(name))
    assert used.hours == pytest.approx(1, abs=5 / 3600)
    assert used.gpu_hours == pytest.approx(0.5, abs=0.01)
    assert folder.is_complete(name)


def advised(recipe, truth):
    rows = list(rows_of(recipe, truth, recipe.rule.seeds))
    return recommend(rows, weigh(rows, recipe.rule))


def test_the_confirmation_trains_the_two_best_plans_and_reads_their_gains(recipe):
    recipe = replace(recipe, confirmation_seeds=(7, 8))
    arms = arms_of(recipe, advised(recipe, CLEAR))
    assert list(arms.values()) == [("none", "none"), ("window", "none"), ("window", "window")]
    assert list(arms) == [NONE, RECOMMENDED, NEXT]
    made = confirmation(recipe, arms)
    assert set(made.by_arm()) == {(levels, seed) for levels in arms.values() for seed in (7, 8)}
    assert not {s.digest for s in made.trials} & {s.digest for s in recipe.trials}
    truth = replace(CLEAR, seeds=(7, 8), noise=0.0)
    rows = [
        replace(row, trial=made.by_arm()[arm, row.seed])
        for row in plant(truth)
        if (arm := tuple(Plan.parse(row.plan)[site].bias for site in SITES)) in arms.values()
    ]
    none, recommended, second = confirmed(rows, made, arms, recipe.rule)
    assert recommended.gains == pytest.approx((6.0, 6.0))
    assert second.gains == pytest.approx((0.0, 0.0))
    assert none.gains == (0.0, 0.0)


def test_the_confirmation_trains_the_settled_plan_before_the_second_best(recipe):
    advice = advised(recipe, CLEAR)
    last = next(one for one in reversed(advice.candidates) if "window" in one.levels)
    arms = arms_of(recipe, replace(advice, settled=last))
    assert list(arms) == [NONE, RECOMMENDED, SETTLED_PLAN]
    assert arms[SETTLED_PLAN] == last.levels != arms[RECOMMENDED] == advice.best.levels


def test_fresh_seeds_take_turns_with_the_checkpoints_of_the_study(recipe):
    arms = arms_of(recipe, advised(recipe, CLEAR))
    names = [f"{seed}.pth" for seed in recipe.rule.seeds]
    recipe = with_init(replace(recipe, confirmation_seeds=tuple(range(20, 21 + len(names)))), names)
    started = dict(sorted((s.seed, s.init_checkpoint) for s in confirmation(recipe, arms).trials))
    assert [*started.values()] == [*names, names[0]]


def test_all_layers_run_again_only_if_they_are_among_the_best(recipe):
    # The price of both is that of 1.58 ^ 2 times the step: each alone is better.
    truth = replace(CLEAR, gain=dict.fromkeys(SITES, 6.0), slowdown_percent=dict.fromkeys(SITES, 58.0))
    arms = arms_of(recipe, advised(recipe, replace(truth, gain={SITES[0]: 6.5, SITES[1]: 6.0})))
    assert list(arms.values())[1:] == [("window", "none"), ("none", "window")]


def test_if_no_bias_is_recommended_it_is_trained_once_and_the_two_best_others(recipe):
    truth = replace(CLEAR, gain={SITES[0]: -1.0, SITES[1]: -2.0})
    arms = arms_of(recipe, advised(recipe, truth))
    assert arms[RECOMMENDED] == arms[NONE]
    assert list(arms.values())[2:] == [("window", "none"), ("none", "window")]
    assert len(confirmation(replace(recipe, confirmation_seeds=(7,)), arms).trials) == 3


def test_a_study_keeps_the_packing_it_began_with(folder, console):
    kept = PackingPlan(3, threads=5, reason="as measured")
    write_json(folder.path / PACKING, kept.to_dict())
    assert {s.torch_threads for s in with_packing(demo(), folder).trials} == {5}
    assert packing_of(demo(), folder, PackingRequest(probing=True), console) == kept
    assert "as measured" in console.file.getvalue()
    assert packing_of(demo(), folder, PackingRequest(), console) == PackingPlan(2)
    assert packing_of(demo(), folder, PackingRequest(4, 2, True), console) == PackingPlan(
        4, arms_per_worker=2
    )


def test_a_packing_is_of_the_recipe_that_was_probed(tmp_path, console, monkeypatch):
    """One that was given up before its first trial leaves its packing behind."""
    probed = [PackingPlan(2, threads=3), PackingPlan(4, threads=1)]
    monkeypatch.setattr("experiments.packing.policy._probed", lambda recipe, asked, console: probed.pop())
    first = demo()
    other = replace(first, trials=tuple(replace(one, init_checkpoint="") for one in first.trials))
    folder, asked = StudyFolder(tmp_path), PackingRequest(probing=True)
    assert packing_of(first, folder, asked, console).concurrent == 4
    begun = with_packing(first, folder)
    assert packing_of(begun, folder, asked, console).concurrent == 4  # probed once
    assert with_packing(other, folder) == other
    assert packing_of(other, folder, asked, console).concurrent == 2
    assert with_packing(first, folder) == first
    begin_session(folder.trial("a"), 0)  # a rule may be corrected later; threads decide bits, and stay
    assert {one.torch_threads for one in with_packing(first, folder).trials} == {3}


def test_a_packing_that_cannot_be_read_is_refused(folder, console):
    write_json(folder.path / PACKING, {"concurrent": 2, "machine": 3})
    with pytest.raises(
        StudyError, match=r"json: not a packing \(machine is 3, expected an object\); delete it to"
    ):
        with_packing(demo(), folder)


def test_the_probe_is_refused_on_a_cluster(folder, console, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(
        StudyError,
        match="the probe measures this machine, not a cluster; name the number of trials by --concurrent",
    ):
        packing_of(demo(), folder, PackingRequest(probing=True), console)
