"""What the command line changes of a study: it is in the digest, in study.json and in the report."""

import json
from argparse import ArgumentParser
from dataclasses import replace

import pytest

from experiments.cli.study.chosen import add_overrides, add_study, chosen_study
from experiments.recipes.fine_tuning import KEPT_STATISTICS
from experiments.recipes.mini import demo, demo_waves, smoke
from experiments.recipes.nuscenes import r50_waves
from experiments.recipes.overrides import known_keys, with_data, with_settings
from experiments.recipes.recipe import RecipeError
from experiments.storage.study_folder import StudyError, StudyFolder
from pipeline.config.settings import DataSettings, TrialSettings
from pipeline.data.sample import DataError
from pipeline.storage.trial_sessions import begin_session


def chosen(*words):
    return chosen_study(parsed(*words))


def parsed(*words):
    parser = ArgumentParser()
    add_study(parser)
    add_overrides(parser)
    return parser.parse_args(words)


def test_settings_of_all_trials_and_of_the_rule():
    made = chosen("demo_waves", "--set", "train.steps=60", "rule.confidence=0.9", "conditions=clean",
                  "config.optim_wrapper.optimizer.lr=1e-3", "early_stopping.steps=30")  # fmt: skip
    assert {(s.train.steps, s.conditions) for s in made.trials} == {(60, ("clean",))}
    assert {s.overrides for s in made.trials} == {(KEPT_STATISTICS, ("optim_wrapper.optimizer.lr", "0.001"))}
    assert made.rule == replace(demo_waves().rule, confidence=0.9)
    assert made.early_stopping.steps == (30,)
    assert made.digest != demo_waves().digest
    assert made.overridden[:2] == ("--set", "train.steps=60")


@pytest.mark.parametrize("none", ["none", "None", "null"])
def test_early_stopping_that_comes_too_late_for_shorter_trials_is_taken_away(none):
    with pytest.raises(RecipeError, match=r"is too late for trials of 3; .* --set early_stopping=none"):
        chosen("demo_waves", "--set", "train.steps=3")
    made = chosen("demo_waves", "--set", "train.steps=3", f"early_stopping={none}")
    assert made.early_stopping is None
    assert made.digest != chosen("demo_waves", "--set", "train.steps=3", "early_stopping.steps=1").digest
    assert "early_stopping" in made.overridden[3]


def test_what_is_overridden_by_its_own_value_is_the_same_study():
    made = chosen("demo", "--set", "train.steps=40", "rule.baseline=none", "--gpus-per-trial", "1")
    assert (made.digest, made.named_trials()) == (demo().digest, demo().named_trials())
    assert made.overridden == (
        "--set",
        "train.steps=40",
        "--set",
        "rule.baseline=none",
        "--gpus-per-trial",
        "1",
    )


def test_a_key_of_the_config_that_is_set_twice_has_the_last_value():
    once = with_settings(demo(), [("config.a.b", 1)])
    assert with_settings(once, [("config.a.b", 2)]).trials[0].overrides == (KEPT_STATISTICS, ("a.b", "2"))


def test_every_setting_but_those_of_the_design_is_a_key():
    assert {
        "train.steps",
        "data.num_loader_workers",
        "torch_threads",
        "rule.order",
        "concurrent_trials",
    } <= set(known_keys())
    assert not {"seed", "plan", "study", "overrides", "train", "data"} & set(known_keys())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "train.stepz=3"], r"--set train\.stepz: a study has no .*; did you mean train\.steps"),
        (["--set", "seed=3"], r"--set seed: a study has no such setting"),
        (["--set", "config.=3"], r"--set config\.: a study has no such setting"),
        (["--set", "train.steps=many"], r"--set: settings\.train\.steps is 'many', expected"),
        (["--set", "rule.confidence=high"], r"the rule\.confidence is 'high', expected a number"),
        (["--set", "rule.confidence=3"], r"the rule's confidence is 3"),
        (["--set", "early_stopping.margin=3"], r"recipe demo stops no trial; set \.steps, too"),
        (["--set", "early_stopping=3"], r"--set early_stopping: it is 3, expected none"),
        (["--set", "early_stopping=none", "early_stopping.steps=9"], r"early_stopping\.steps is set, too"),
        (["--set", "concurrent_trials=x"], r"recipe\.concurrent_trials is 'x'"),
        (["--set", "train.steps"], r"--set train\.steps: expected KEY=VALUE"),
        (["--data", ""], r"--data: expected a path"),
        (["--gpus-per-trial", "7"], r"equally by 7 workers; expected one of 1, 2 \(--gpus-per-trial N\)"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)  # fmt: skip
def test_refusals(words, sentence):
    with pytest.raises(ValueError, match=sentence):
        chosen("demo", *words)


def test_a_rule_of_a_recipe_that_compares_nothing():
    with pytest.raises(RecipeError, match=r"--set rule\.confidence: recipe pretrain compares nothing"):
        chosen("pretrain", "--set", "rule.confidence=0.9")


def tables(root, *versions):
    for version in versions:
        (root / version).mkdir(parents=True)
        (root / version / "sample.json").touch()
    return str(root)


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        (("v1.0-mini",), ("v1.0-mini", "mini_train", "mini_val")),
        (("v1.0-mini", "v1.0-test", "v1.0-trainval"), ("v1.0-trainval", "train", "val")),
    ],
)
def test_the_version_and_its_splits_are_found(tmp_path, versions, found):
    root = tables(tmp_path / "nuscenes", *versions)
    (data,) = {s.data for s in chosen("r50_waves", "--data", root).trials}
    assert data == replace(
        r50_waves().trials[0].data,
        train=(root,), val=root, nuscenes_version=found[0], train_split=found[1], val_split=found[2],
    )  # fmt: skip


def test_an_info_file_lies_beside_the_tables_that_evaluation_reads(tmp_path):
    root = tables(tmp_path, "v1.0-mini")
    made = with_data(demo(), f"{root}/nuscenes_infos_train.pkl")
    assert {s.data for s in made.trials} == {DataSettings((f"{root}/nuscenes_infos_train.pkl",), root)}
    assert made.datasets == (), "nothing is generated for data of the user's own"


def test_a_folder_without_tables(tmp_path):
    with pytest.raises(DataError, match=r"no tables; expected a folder such as v1\.0-trainval in it"):
        with_data(demo(), str(tmp_path))


def test_data_of_a_cluster_are_not_looked_for_here():
    made = chosen("r50_waves", "--data", "/on/the/cluster")
    assert {(s.data.val, s.data.val_split) for s in made.trials} == {("/on/the/cluster", "val")}


def test_the_database_of_objects_is_taken_from_the_dataset(tmp_path):
    root = tables(tmp_path, "v1.0-trainval")
    (tmp_path / "nuscenes_dbinfos_train.pkl").touch()
    (overrides,) = {s.overrides for s in chosen("r50_waves", "--data", root).trials}
    assert sorted((key.rpartition(".")[2], json.loads(text)) for key, text in overrides) == [
        ("data_root", root),
        ("info_path", f"{root}/nuscenes_dbinfos_train.pkl"),
        ("norm_eval", True),
    ]


def test_study_json_holds_the_words_and_a_start_without_them_is_told(tmp_path):
    folder, made = StudyFolder(tmp_path / "smoke"), chosen("smoke", "--set", "train.steps=4")
    folder.claim(made, {})
    begin_session(folder.trial(next(iter(made.named_trials()))), 0.0)
    folder.claim(replace(made, overridden=()), {})  # spelled otherwise, in the study file perhaps
    with pytest.raises(
        StudyError, match=r"since then changed: .*; the study was begun with --set train\.steps=4$"
    ):
        folder.claim(smoke(), {})


def test_settings_survive_a_change():
    assert with_settings(demo(), [("train.steps", 40)]).trials == demo().trials
    assert isinstance(with_settings(demo(), [("torch_threads", 2)]).trials[0], TrialSettings)


def given(names):
    return [word for name in names for word in ("--init", f"{name}.pth")]


def test_each_seed_may_start_from_a_checkpoint_of_its_own():
    made = chosen("demo", *given("ab"))
    started = {(settings.seed, settings.init_checkpoint) for settings in made.trials}
    assert started == {(0, "a.pth"), (1, "b.pth")}
    assert made.checkpoints == ("a.pth", "b.pth")
    assert made.overridden == ("--init", "a.pth", "--init", "b.pth")
    assert made.digest != chosen("demo", *given("a")).digest
    one = chosen("demo", "--init", demo().trials[0].init_checkpoint)
    assert (one.digest, one.named_trials()) == (demo().digest, demo().named_trials())


@pytest.mark.parametrize(("study", "names", "seeds"), [("demo", "abc", 2), ("demo_waves", "ab", 8)])
def test_neither_one_checkpoint_nor_one_for_each_seed_is_refused(study, names, seeds):
    says = f"--init names {len(names)} checkpoints, and recipe {study} has {seeds} seeds; name one for all"
    with pytest.raises(RecipeError, match=says):
        chosen(study, *given(names))
