"""Preflight of a study: a rule about what no trial will measure is refused before any of them runs."""

import importlib.util
import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from experiments.recipes.decision_rule import AnalysisError
from experiments.recipes.fine_tuning import KEPT_STATISTICS
from experiments.recipes.mini import demo, demo_waves, smoke, smoke_waves
from experiments.recipes.registry import RECIPES, recipe
from experiments.storage.study_folder import StudyError, StudyFolder
from experiments.study import run_study
from experiments.study.preflight.checks import check_data
from experiments.study.preflight.inputs import refuse_missing
from experiments.study.preflight.models import check_models
from experiments.study.preflight.values import check_rule
from experiments.terminal import Terminal
from pipeline.data.formats.shard_writer import write_shards
from pipeline.data.sample import DataError


@pytest.mark.parametrize("name", RECIPES)
def test_the_rules_that_ship_can_be_answered(name):
    check_rule(recipe(name))


@pytest.mark.parametrize(
    ("made", "changes", "sentence"),
    [
        (
            smoke,
            {"metric": "mAPH"},
            "its rule asks for 'mAPH'; expected a metric of which more of it is better",
        ),
        (smoke, {"metric": "mASE"}, "NDS, mAP, AP/car"),  # an error: less of it is better
        (smoke, {"condition": "fog"}, "asks for the condition 'fog', and trial none_s0_.* measures clean"),
        (demo_waves, {"metric": "AP/car"}, "it is measured where trials may stop: NDS, mAP"),
    ],
)
def test_a_rule_that_no_trial_could_answer_is_refused(made, changes, sentence):
    study = made()
    with pytest.raises(StudyError, match=sentence):
        check_rule(replace(study, rule=replace(study.rule, **changes)))


def test_a_class_is_a_metric():
    study = smoke()
    check_rule(replace(study, rule=replace(study.rule, metric="AP/car")))


def test_a_budget_below_the_first_look_is_refused_before_data_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(run_study, "make_datasets", lambda *_: pytest.fail("data were made"))
    options, console = run_study.RunOptions(tmp_path, max_trials=3), Console(quiet=True)
    with pytest.raises(AnalysisError, match="look 1 needs 4 trials in all, and the budget is 3"):
        run_study.run_study(smoke_waves(), options, console)


def test_a_study_is_warned_of_batch_norms_that_forget_their_weights():
    """A rate of 0 costs the mini 5.8 points of NDS so (docs/log.md, 2026-11-30)."""

    def said(study):
        console = Terminal(file=io.StringIO(), width=200)
        check_models(study, console)
        return console.file.getvalue()

    kept = replace(demo(), trials=demo().trials[:2])
    assert KEPT_STATISTICS in kept.trials[0].overrides
    without = tuple(pair for pair in kept.trials[0].overrides if pair != KEPT_STATISTICS)
    forgetful = replace(kept, trials=tuple(replace(s, overrides=without) for s in kept.trials))
    fresh = replace(forgetful, trials=tuple(replace(s, init_checkpoint="") for s in forgetful.trials))
    assert said(kept) == said(fresh) == ""
    warning = said(forgetful)
    assert warning.count("warning:") == 1
    assert "new statistics from batches of 2 (pts_bbox_head.shared_conv." in warning
    assert "--set config.model.norm_eval=true" in warning


def test_all_that_is_missing_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(StudyError) as refusal:
        refuse_missing(recipe("r50_waves"), ["storage: s3://x cannot be read"])
    said = str(refusal.value)
    here = ["storage: s3://x", "weights: there is no ", "data: there is no ", "objects: there is no "]
    devices = torch.cuda.device_count() < 8, importlib.util.find_spec("spconv") is None
    lacking = [
        what for what, lacks in zip(("GPU: a trial takes 8", "spconv: "), devices, strict=True) if lacks
    ]
    assert said.startswith(f"recipe r50_waves: {len(here) + len(lacking)} things are missing: (1) storage: ")
    assert [what for what in (*here, *lacking) if what not in said] == []
    assert f"ln -s /your/nuscenes {tmp_path / 'data/nuscenes'}" in said
    assert "data synth" not in said, "nuScenes is not generated"


def test_a_folder_is_no_weights(tmp_path):
    study = demo()
    trials = tuple(replace(settings, init_checkpoint=str(tmp_path)) for settings in study.trials)
    with pytest.raises(StudyError) as refusal:
        refuse_missing(replace(study, trials=trials))
    assert f"weights: {tmp_path} is a folder, expected a file; name yours with --init" in str(refusal.value)


def test_what_is_generated_is_not_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuse_missing(smoke())


def test_on_a_cluster_its_machines_have_the_gpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(StudyError, match="things are missing") as refusal:
        refuse_missing(recipe("r50_waves"))
    assert "GPU" not in str(refusal.value)


def test_a_confirmation_counts_as_trials_of_the_study(tmp_path, monkeypatch):
    """Three arms with each fresh seed: a confirmation of two seeds takes up to six trials."""
    study = replace(demo(), confirmation_seeds=(20, 21))
    folder, names = StudyFolder(tmp_path / "demo"), list(study.named_trials())[:8]
    folder.claim(study, {})
    for name in names:
        folder.finish(name)

    def said(**given):
        console, options = Terminal(file=io.StringIO(), width=200), run_study.RunOptions(tmp_path, **given)
        runs = run_study._confirms(study, folder, options, options.budget(study), console)
        return runs, console.file.getvalue()

    assert said() == said(max_trials=14) == (True, "")
    assert said(confirmation=False) == (False, "")
    refused = "no confirmation: 8 trials have run, it takes up to 6 more, and --max-trials is 13\n"
    assert said(max_trials=13) == (False, refused)
    monkeypatch.setattr(StudyFolder, "gpu_hours", lambda _: 2.04)
    assert said(max_gpu_hours=3.0) == (True, "")
    assert said(max_gpu_hours=2.0) == (False, "no confirmation: the study has used 2 of 2 GPU hours\n")


def test_shards_in_a_store_are_data(smoke_world, tmp_path):
    """Shards are named by a URI, here one of the file system."""
    study, shards = smoke(), (tmp_path / "shards").as_uri()
    write_shards(smoke_world.root, "v1.0-mini", "mini_train", shards)

    def check_with(train):
        data = replace(study.trials[0].data, train=(train,), val=smoke_world.root)
        check_data(replace(study, trials=tuple(replace(one, data=data) for one in study.trials)))

    check_with(shards)
    with pytest.raises(DataError, match=r"^/nowhere/shards/mini_train\.json: no finished shards"):
        check_with("file:///nowhere/shards")
