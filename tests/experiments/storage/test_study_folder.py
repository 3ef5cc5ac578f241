import json
import shutil
from dataclasses import replace

import pytest

from experiments.recipes.mini import smoke
from experiments.recipes.overrides import with_settings
from experiments.reporting.study_record import read_record
from experiments.storage.study_folder import (
    StudyError,
    StudyFolder,
    settings_of,
)
from pipeline.storage.trial_status import TrialState

INPUTS = {"config.py": "abc"}
FIRST, SECOND = smoke().named_trials()


@pytest.fixture
def folder(tmp_path):
    made = StudyFolder(tmp_path / "runs" / "smoke")
    made.claim(smoke(), INPUTS)
    return made


def begin(folder, name=FIRST):
    (folder.trial(name) / "rows.jsonl").write_text("")


def test_a_claimed_folder_holds_what_the_report_reads(folder):
    record = read_record(folder.path)
    assert (record.name, record.question) == ("smoke", smoke().question)
    assert (record.rule, record.digest) == (smoke().rule, smoke().digest)


def test_settings_are_read_back(folder):
    assert settings_of(folder.trial(FIRST)) == smoke().trials[0]


def test_states_follow_the_files(folder):
    assert folder.state(FIRST) == TrialState.PENDING
    begin(folder)
    assert folder.state(FIRST) == TrialState.RUNNING
    folder.finish(FIRST, "it broke", "Traceback ...")
    assert (folder.state(FIRST), folder.failure(FIRST)) == (TrialState.FAILED, "it broke")
    folder.reopen(FIRST)
    assert (folder.state(FIRST), folder.failure(FIRST)) == (TrialState.RUNNING, "")
    folder.finish(FIRST)
    folder.reopen(FIRST)  # what is complete never runs again
    assert (folder.state(FIRST), folder.failure(FIRST)) == (TrialState.COMPLETE, "")


def test_a_checkpoint_without_rows_is_a_trial_that_was_started(folder):
    (folder.trial(FIRST) / "checkpoints" / "step_00000002").mkdir(parents=True)
    assert folder.state(FIRST) == TrialState.RUNNING


def test_claiming_again_changes_nothing(folder):
    begin(folder)
    before = (folder.path / "study.json").stat().st_mtime_ns
    folder.claim(smoke(), INPUTS)
    assert (folder.path / "study.json").stat().st_mtime_ns == before


def test_other_settings_are_refused_once_a_trial_has_run(folder):
    begin(folder)
    with pytest.raises(
        StudyError, match=r"since then changed: digest, trials \(torch_threads\); move .* away"
    ):
        folder.claim(smoke().with_threads(5), INPUTS)


def test_what_changed_is_spelled_as_the_command_line_spells_it(folder):
    begin(folder)
    longer = with_settings(smoke(), [("train.steps", 7), ("data.shuffle_buffer", 3)])
    with pytest.raises(StudyError, match=r"trials \(data\.shuffle_buffer, train\.steps\); move"):
        folder.claim(longer, INPUTS)
    other = replace(smoke(), trials=tuple(replace(s, seed=5) for s in smoke().trials))
    with pytest.raises(StudyError, match=r"trials \(seed\); move"):
        folder.claim(other, INPUTS)


def test_a_changed_config_is_refused_once_a_trial_has_run(folder):
    begin(folder)
    with pytest.raises(StudyError, match=r"changed: inputs: config\.py;"):
        folder.claim(smoke(), {"config.py": "xyz"})


@pytest.mark.parametrize("field", ["factors", "worlds"])
def test_a_study_of_version_0_1_0_is_refused_and_left_as_it_is(folder, field):
    old = json.loads((folder.path / "study.json").read_text()) | {field: []}
    (folder.path / "study.json").write_text(json.dumps(old))
    with pytest.raises(StudyError, match=r"study\.json was written by Biaswise 0\.1\.0; read .* da22db2"):
        folder.claim(smoke(), INPUTS)
    assert json.loads((folder.path / "study.json").read_text()) == old


def test_a_study_of_which_nothing_ran_takes_another_recipe(folder):
    other = replace(smoke(), trials=tuple(replace(s, seed=5) for s in smoke().trials))
    folder.claim(other, INPUTS)
    assert read_record(folder.path).digest == other.digest
    assert {path.name for path in folder.path.glob("trials/*")} == set(other.named_trials())


def test_tampered_settings_are_refused(folder):
    begin(folder)
    path = folder.trial(SECOND) / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"torch_threads": 9}))
    with pytest.raises(StudyError, match="changed: torch_threads"):
        folder.claim(smoke(), INPUTS)


def test_a_broken_study_file_is_refused_by_name(folder):
    begin(folder)
    (folder.path / "study.json").write_text("{")
    with pytest.raises(
        StudyError, match=r"study\.json: cannot be read as JSON .* writes it anew, and trials"
    ):
        folder.claim(smoke(), INPUTS)


def test_a_study_file_that_was_deleted_is_written_anew_and_trials_of_the_same_recipe_stay(folder):
    begin(folder)
    folder.finish(FIRST)
    text = (folder.path / "study.json").read_text()
    (folder.path / "study.json").unlink()
    folder.claim(smoke(), INPUTS)
    assert (folder.path / "study.json").read_text() == text
    assert folder.is_complete(FIRST)


def test_the_trial_of_a_removed_folder_runs_again_and_no_other(folder):
    for name in (FIRST, SECOND):
        folder.finish(name)
    shutil.rmtree(folder.trial(FIRST))
    folder.claim(smoke(), INPUTS)
    assert folder.state(FIRST) == TrialState.PENDING
    assert folder.is_complete(SECOND)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"cannot write here \(Not a directory\); choose another --runs-dir"):
        StudyFolder(tmp_path / "file" / "smoke").claim(smoke(), INPUTS)


def test_one_process_at_a_time(folder):
    with folder.lock(), pytest.raises(StudyError, match="another process runs this study"), folder.lock():
        pass
    with folder.lock():
        pass
