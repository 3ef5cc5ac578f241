"""A run of a study that breaks off: MLflow says so, and a start that is refused changes nothing."""

import io
import json

import pytest
from mlflow import MlflowClient

from experiments.recipes.mini import smoke
from experiments.storage.study_folder import StudyError, StudyFolder
from experiments.study import run_study as module
from experiments.study.run_study import RunOptions, run_study
from experiments.terminal import Terminal
from pipeline.metrics.rows import Row, append_rows
from pipeline.tracking.mlflow_store import EXPERIMENT
from pipeline.tracking.mlflow_sync import sync
from pipeline.tracking.study_reader import END, write_end

pytestmark = pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::sqlalchemy", "ignore:::alembic")


@pytest.fixture
def client(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return MlflowClient(uri)


def states_of_trials(client: MlflowClient) -> list[str]:
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    return [run.info.status for run in client.search_runs([experiment], "tags.`biaswise.kind` = 'trial'")]


@pytest.mark.parametrize(
    ("error", "state", "tag"),
    [
        (KeyboardInterrupt(), "KILLED", "The run broke off: it was interrupted"),
        (StudyError("no room"), "FAILED", "The run broke off: StudyError: no room"),
    ],
)
def test_a_run_that_breaks_off_ends_in_mlflow(client, tmp_path, monkeypatch, error, state, tag):
    recipe = smoke()
    folder = StudyFolder(tmp_path / "runs" / recipe.name)

    def break_off(recipe, *others):
        assert not (folder.path / END).exists()
        name = next(iter(recipe.named_trials()))
        row = Row(recipe.name, name, "decoder.0.cross=none/sdpa_math", "loss", "", 1.0, time=1000.0)
        append_rows(folder.trial(name) / "rows.jsonl", [row])
        raise error

    monkeypatch.setattr(module, "make_datasets", lambda *_: None)
    monkeypatch.setattr(module, "refuse_missing", lambda *_: None)
    monkeypatch.setattr(module, "check_trials", break_off)
    with pytest.raises(type(error)):
        run_study(recipe, RunOptions(tmp_path / "runs"), Terminal(file=io.StringIO()))
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    (parent,) = client.search_runs([experiment], "tags.`biaswise.kind` = 'study'")
    assert (parent.info.status, parent.data.tags["biaswise.no_verdict"]) == (state, tag)
    assert states_of_trials(client) == ["KILLED"], "it has rows and no end"
    write_end(folder.path, None)  # what the next run begins with
    sync(folder.path)
    assert client.get_run(parent.info.run_id).info.status == "RUNNING"
    assert states_of_trials(client) == ["RUNNING"]


def test_a_start_that_is_refused_leaves_the_end_as_it_was(tmp_path, monkeypatch):
    recipe = smoke()
    folder = tmp_path / "runs" / recipe.name
    folder.mkdir(parents=True)
    (folder / END).write_text('{"state": "FINISHED", "no_verdict": ""}')
    trial = folder / "trials" / next(iter(recipe.named_trials()))
    append_rows(trial / "rows.jsonl", [Row(recipe.name, trial.name, "", "loss", "", 1.0)])
    (folder / "study.json").write_text(json.dumps({"name": "another"}))
    before = (folder / END).read_text()
    monkeypatch.setattr(module, "refuse_missing", lambda *_: None)
    with pytest.raises(StudyError):
        run_study(recipe, RunOptions(tmp_path / "runs"), Terminal(file=io.StringIO()))
    assert (folder / END).read_text() == before
