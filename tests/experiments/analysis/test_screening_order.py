"""A rule that takes the order of its layers from the study's screening: it waits and trusts no other."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from experiments.analysis.screening import (
    FOLDER,
    INTERVENTION,
    RANKING,
    ROWS,
    masks,
    rank,
    ranking_record,
    rule_in_force,
    screened,
    screening_seed,
)
from experiments.recipes.decision_rule import SCREENING, AnalysisError, ScreeningMissing
from experiments.recipes.factorial import level_of
from experiments.recipes.mini import CROSS_SITES, smoke_waves
from experiments.recipes.registry import recipe
from experiments.reporting.summary import summarize
from experiments.storage.study_folder import StudyFolder
from experiments.study.next_wave import Budget
from experiments.study.tune_runner import ExecutionOptions
from experiments.study.waves import run_waves
from pipeline.config.plan import Plan
from pipeline.metrics.rows import Row, append_rows, read_rows
from tests.experiments.planted_rows import Truth, plant

SITES = CROSS_SITES[:2]
SEEDS = (0, 1)
TRUTH = Truth({SITES[0]: 6.0, SITES[1]: -6.0}, seeds=SEEDS, noise=0.05, seed_noise=0.1)
EVERY_SITE = ["aqr.0.cross"] + [f"decoder.{i}.{kind}" for i in range(3) for kind in ("self", "cross")]


@pytest.fixture
def study():
    plain = smoke_waves()
    return replace(plain, rule=replace(plain.rule, order_by=SCREENING, priced_by="trials"))


@pytest.fixture
def folder(tmp_path, study):
    """The study, of which all trials of the first two seeds have ended."""
    made = StudyFolder(tmp_path / study.name)
    made.claim(study, {})
    for row in plant(TRUTH, base=Row(study.name, "", "", "", "", 0.0, step=3, recipe_digest=study.digest)):
        arm = tuple(level_of(Plan.parse(row.plan)[site]) for site in study.sites)
        name = study.by_arm()[arm, row.seed]
        plan = str(study.named_trials()[name].plan.resolve(EVERY_SITE))
        append_rows(made.trial(name) / "rows.jsonl", [replace(row, trial=name, plan=plan)])
    for (_, seed), name in study.by_arm().items():
        if seed in SEEDS:
            made.finish(name)
    return made


def screen(study, folder, digest=None, leave_out=0, seed=None):
    """Write a screening that finds the second site worth more."""
    worth = dict(zip(SITES, (0.01, 0.05), strict=True))
    rows = [
        Row(
            *(study.name, "t", str(plan), f"{INTERVENTION}NDS", "fraction"),
            sum(gain for site, gain in worth.items() if plan[site].bias == "window"),
            condition="clean",
            seed=screening_seed(study) if seed is None else seed,
            recipe_digest=digest or study.digest,
        )
        for plan in masks(study)
    ]
    path = folder.path / FOLDER / ROWS
    append_rows(path, rows[leave_out:])
    return path


def go_on(study, folder):
    return run_waves(study, folder, Console(file=io.StringIO()), ExecutionOptions(), Budget(100))


def test_it_waits_for_the_screening_and_says_so(study, folder):
    with pytest.raises(ScreeningMissing, match="and there is none; run `biaswise study screen`"):
        go_on(study, folder)
    assert "in the order of the study's screening, and there is none" in summarize(folder.path).answer


def test_the_ranking_decides_at_which_level_a_layer_is_tested(study, folder):
    screen(study, folder)
    assert go_on(study, folder).reason == "Every verdict is settled after 2 seeds."
    evidence = summarize(folder.path).evidence
    assert evidence.rule.order == (SITES[1], SITES[0])
    settled = {verdict.site: verdict.verdict for verdict in evidence.verdicts}
    assert settled == {SITES[0]: "PAYS", SITES[1]: "COSTS"}  # a wrong ranking turns no verdict
    assert f"by the order {SITES[1]}, {SITES[0]}" in str(evidence.rule)


def test_screenings_that_are_not_the_studys_are_refused(study, folder):
    path = screen(study, folder, digest="other")
    with pytest.raises(AnalysisError, match=f"is of the recipe other, the study of {study.digest}"):
        rule_in_force(study.rule, folder.path, study.digest)
    path.unlink()
    path = screen(study, folder, leave_out=1)
    with pytest.raises(AnalysisError, match="1 of 4 masks have no NDS"):
        rule_in_force(study.rule, folder.path, study.digest)
    path.unlink()
    path = screen(study, folder)
    ranking = rank(read_rows(path), SITES, study.rule)
    path.with_name(RANKING).write_text(json.dumps(ranking_record(path, ranking, study.rule, study.digest)))
    assert rule_in_force(study.rule, folder.path, study.digest).order == (SITES[1], SITES[0])
    path.write_text(path.read_text().replace('"value": 0.05', '"value": 0.5'))
    with pytest.raises(AnalysisError, match="are not those that the screening wrote"):
        rule_in_force(study.rule, folder.path, study.digest)
    assert "are not those that the screening wrote" in summarize(folder.path).answer


def test_a_screening_with_a_seed_of_the_study_is_refused(study, folder):
    path = screen(study, folder, seed=SEEDS[0])
    reason = "was trained with seed 0, which the study's verdicts use"
    with pytest.raises(AnalysisError, match=reason):
        rule_in_force(study.rule, folder.path, study.digest)
    with pytest.raises(AnalysisError, match=reason):
        go_on(study, folder)
    assert reason in summarize(folder.path).answer
    path.unlink()
    screen(study, folder)
    with pytest.raises(AnalysisError, match="and names no seeds"):
        rule_in_force(replace(study.rule, seeds=()), folder.path, study.digest)


def test_a_rule_without_the_wish_ignores_a_screening(study, folder):
    screen(study, folder)
    plain = smoke_waves().rule
    assert rule_in_force(plain, folder.path, study.digest) is plain


def test_the_recipe_that_ships_screens_a_seed_of_its_own():
    found = recipe("r50_screened")
    assert found.rule.order_by == SCREENING
    used = {settings.seed for settings in found.trials} | {*found.rule.seeds, *found.confirmation_seeds}
    assert screened(found).seed not in used
