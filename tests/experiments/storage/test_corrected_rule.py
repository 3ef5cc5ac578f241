"""A rule that is corrected judges the trials that have run; nothing else may change."""

from argparse import Namespace
from dataclasses import replace

import pytest

from experiments.cli import main
from experiments.cli.study.chosen import chosen_study
from experiments.recipes.mini import smoke
from experiments.reporting.study_record import read_record
from experiments.reporting.summary import summarize
from experiments.storage.corrected_rule import as_begun
from experiments.storage.study_folder import StudyError, StudyFolder
from experiments.study.confirmation_run import confirmation
from pipeline.metrics.rows import Row, append_rows
from pipeline.storage.trial_sessions import begin_session

STUDY = """\
from dataclasses import replace

from experiments.recipes.registry import recipe as shipped

recipe = shipped("smoke").renamed("mine")
recipe = replace(recipe, rule=replace(recipe.rule, metric="{metric}"))
"""


def mine(metric="mAP", **rule):
    made = smoke().renamed("mine")
    return replace(made, rule=replace(made.rule, metric=metric, **rule))


@pytest.fixture
def begun(tmp_path):
    folder, made = StudyFolder(tmp_path / "runs/mine"), mine()
    folder.claim(made, {})
    for name, settings in made.named_trials().items():
        begin_session(folder.trial(name), 0.0)
        common = Row("mine", name, str(settings.plan), "NDS", "", 0.3, recipe_digest=made.digest, step=3)
        common = replace(common, condition="clean", unit="fraction")
        append_rows(folder.trial(name) / "rows.jsonl", [common, replace(common, metric="mAP")])
        folder.finish(name)
    return folder


def test_the_corrected_rule_judges_under_the_digest_of_the_beginning(begun):
    corrected = begun.claim(mine("NDS", confidence=0.9), {})
    assert corrected.digest == mine().digest == read_record(begun.path).digest
    assert read_record(begun.path).rule == mine("NDS", confidence=0.9).rule
    (note,) = (note for note in summarize(begun.path).notes if "rule" in note)
    assert note.startswith("The rule was changed after 4 rows of 2 trials (")
    assert "metric: mAP -> NDS" in note
    assert "confidence: 0.95 -> 0.9" in note


def test_every_change_is_told_even_the_one_back(begun):
    for metric in ("NDS", "NDS", "mAP"):
        assert begun.claim(mine(metric), {}).digest == mine().digest
    changes = read_record(begun.path).rule_changes
    assert [change.rule["metric"] for change in changes] == ["mAP", "NDS"]
    assert len([note for note in summarize(begun.path).notes if note.startswith("The rule")]) == 2


def test_rule_and_trials_together_are_another_study(begun):
    other = mine("NDS").with_threads(2)
    assert as_begun(begun.path, other) is None
    with pytest.raises(StudyError, match="since then changed"):
        begun.claim(other, {})
    with pytest.raises(StudyError, match=r"changed: inputs: config\.py;"):
        begun.claim(mine("NDS"), {"config.py": "xyz"})
    assert read_record(begun.path).rule_changes == (), "a start that is refused changes nothing"


def test_a_study_that_has_not_begun_has_no_history(tmp_path):
    folder = StudyFolder(tmp_path / "mine")
    folder.claim(mine(), {})
    folder.claim(mine("NDS"), {})
    record = read_record(folder.path)
    assert (record.rule_changes, record.digest) == ((), mine("NDS").digest)


def test_a_report_of_the_corrected_file_needs_no_training(begun, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(STUDY.format(metric="NDS"))
    assert main(["study", "report", "mine.py"]) == 0
    assert "The rule was changed after 4 rows of 2 trials" in (begun.path / "report.md").read_text()
    (tmp_path / "mine.py").write_text(STUDY.format(metric="NDS") + "recipe = recipe.with_threads(3)\n")
    assert main(["study", "report", "mine.py"]) == 0
    said = capsys.readouterr().out
    assert "mine.py is no longer the study that ran; the report is by runs/mine/study.json" in said


def test_a_report_of_a_file_keeps_what_the_command_line_overrode(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(STUDY.format(metric="mAP"))
    made = chosen_study(
        Namespace(study="mine.py", set=["train.steps=4"], data=None, init=None, gpus_per_trial=None)
    )
    folder = StudyFolder(tmp_path / "runs/mine")
    folder.claim(made, {})
    (name, settings), *_ = made.named_trials().items()
    begin_session(folder.trial(name), 0.0)
    row = Row("mine", name, str(settings.plan), "mAP", "", 0.3, recipe_digest=made.digest, condition="clean")
    append_rows(folder.trial(name) / "rows.jsonl", [row])
    (tmp_path / "mine.py").write_text(STUDY.format(metric="NDS"))
    assert main(["study", "report", "mine.py"]) == 0
    assert "no longer the study" not in capsys.readouterr().out
    assert read_record(folder.path).rule.metric == "NDS"
    assert read_record(folder.path).digest == made.digest


def test_a_confirmation_is_the_same_study_whatever_the_rule_became(begun):
    again = replace(mine(), confirmation_seeds=(100,), begun_as="123456789abc")
    arms = {"none": ("none",), "best": ("window",)}
    plain = confirmation(replace(again, begun_as=""), arms)
    assert confirmation(again, arms).digest == plain.digest
