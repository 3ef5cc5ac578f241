"""What people see of a study in MLflow beside its curves: datasets, prices, its end, its view, its model."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from pipeline.config.plan import Plan
from pipeline.metrics.rows import read_rows
from pipeline.storage.trial_status import TrialState, read_status
from pipeline.tracking.mlflow_store import EXPERIMENT, prepare_store
from pipeline.tracking.mlflow_sync import sync
from pipeline.tracking.registered_model import BASELINE, RECOMMENDED, Version, model_name, register
from pipeline.tracking.saved_view import SHARED_VIEW, latest_views
from pipeline.tracking.study_reader import StudyEnd, write_end
from pipeline.tracking.study_verdicts import SiteVerdict, StudyVerdicts
from tests.pipeline.tracking.test_mlflow_sync import SITES, judged, make_study, runs_of
from tests.statuses import write_status

pytestmark = pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::sqlalchemy", "ignore:::alembic")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_store, tmp_path):
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


@pytest.fixture
def study(tmp_path, request):
    return make_study(tmp_path / "runs/shown", "shown")


def test_the_datasets_of_a_trial_are_inputs_of_its_run(uri, study):
    data = {"train": ["data/mini", "s3://bucket/more"], "val": "data/mini", "nuscenes_version": "v1.0-mini"}
    splits = {"train_split": "mini_train", "val_split": "mini_val"}
    file = study / "trials/w00-s1/settings.json"
    file.write_text(json.dumps({"data": data | splits}))
    rows = (study / "trials/w00-s1/rows.jsonl").read_text()
    (study / "trials/w00-s1/rows.jsonl").write_text(
        rows.replace('"versions": "', '"versions": "torch=2.13;data=0123456789ab;')
    )
    for _ in range(2):
        sync(study, uri)
    _, _, children = runs_of(uri, study)
    found = {
        (one.tags[0].value, one.dataset.name, one.dataset.digest, one.dataset.source_type)
        for one in children["w00-s1"].inputs.dataset_inputs
    }
    assert found == {
        ("training", "mini/mini_train", "0123456789ab", "local"),
        ("training", "more/mini_train", "0123456789ab", "s3"),
        ("validation", "mini/mini_val", "0123456789ab", "local"),
    }
    (one, *_) = children["w00-s1"].inputs.dataset_inputs
    assert json.loads(one.dataset.profile)["version"] == "v1.0-mini"
    assert not children["w10-s1"].inputs.dataset_inputs


def test_an_experiment_that_was_deleted_is_told_with_the_command_that_restores_it(uri, study):
    sync(study, uri)
    client = MlflowClient(uri)
    number = client.get_experiment_by_name(EXPERIMENT).experiment_id
    client.delete_experiment(number)
    for warning in (sync(study, uri).warning, prepare_store(uri)):
        assert "its experiment biaswise was deleted" in warning
        assert f"`MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id {number}`" in warning
    client.restore_experiment(number)
    assert sync(study, uri).warning == ""


@pytest.mark.slow
def test_that_command_works(uri, study):
    sync(study, uri)
    client = MlflowClient(uri)
    client.delete_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id)
    variable, *words = sync(study, uri).warning.split("`")[1].split()
    name, _, value = variable.partition("=")
    command = [sys.executable, "-m", *words]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {name: value})
    assert sync(study, uri).warning == ""


def test_a_study_that_ends_without_a_verdict_ends_and_the_next_run_goes_on_with_its_run(uri, study):
    write_status(study / "trials/w01-s1", TrialState.FAILED)
    sync(study, uri)
    _, (parent,), _ = runs_of(uri, study)
    assert parent.info.status == "RUNNING"
    write_end(study, StudyEnd("FAILED", "1 trials failed, 0 are unfinished."))
    sync(study, uri)
    _, (ended,), _ = runs_of(uri, study)
    assert (ended.info.run_id, ended.info.status) == (parent.info.run_id, "FAILED")
    assert ended.data.tags["biaswise.no_verdict"] == "1 trials failed, 0 are unfinished."
    assert ended.info.end_time == max(
        round(row.time * 1000) for path in study.glob("trials/*/rows.jsonl") for row in read_rows(path)
    )
    write_end(study, None)  # the next run begins, and the trial that failed runs again
    write_status(study / "trials/w01-s1", TrialState.RUNNING)
    sync(study, uri, ["w01-s1"])
    _, (again,), _ = runs_of(uri, study)
    assert (again.info.run_id, again.info.status) == (parent.info.run_id, "RUNNING")
    assert "biaswise.no_verdict" not in again.data.tags
    write_status(study / "trials/w01-s1")
    write_end(study, StudyEnd("FINISHED"))
    sync(study, uri)
    _, (last,), _ = runs_of(uri, study)
    assert (last.info.run_id, last.info.status) == (parent.info.run_id, "FINISHED")


def test_the_ends_of_intervals_are_metrics_beside_their_estimates(uri, study):
    report = judged(study)
    sync(study, uri)
    _, (parent,), _ = runs_of(uri, study)
    metrics = parent.data.metrics
    for verdict in report.summary.evidence.verdicts:
        for name, low, value, high in (
            ("gain", verdict.low, verdict.effect, verdict.high),
            ("net_gain", verdict.net_low, verdict.net, verdict.net_high),
            ("price", verdict.price_low, verdict.price, verdict.price_high),
        ):
            key = f"{name}/{verdict.site}"
            assert (metrics[f"{key}_low"], metrics[key], metrics[f"{key}_high"]) == (low, value, high)
            assert low < value < high


def test_each_trial_shows_what_its_plan_costs(uri, study):
    verdicts = StudyVerdicts(
        tuple(
            SiteVerdict(site, "window", "PAYS", 1.0, 1.0, percent)
            for site, percent in zip(SITES, (10, 20), strict=True)
        ),
        fixed_price_percent={"training": 50.0},
    )
    sync(study, uri, verdicts=verdicts)
    _, _, children = runs_of(uri, study)
    price = {name: run.data.metrics["price/slowdown_percent"] for name, run in children.items()}
    assert price == pytest.approx({"w00-s1": 0, "w10-s1": 65, "w01-s1": 80, "w11-s1": 98})


def test_a_design_of_one_layer_shows_its_price_too():
    verdicts = StudyVerdicts((SiteVerdict("a.0.cross", "window:15", "PAYS", 1.0, 1.0, 10.0),))
    plans = ("none/sdpa_math", "window:15/sdpa_math", "window/sdpa_math")
    found = [verdicts.slowdown_percent(Plan.parse(f"a.0.cross={choice}")) for choice in plans]
    assert found == pytest.approx([0, 10, 0])


def test_without_a_stopwatch_no_price_is_shown(uri, study):
    sync(study, uri, verdicts=StudyVerdicts((SiteVerdict(next(iter(SITES)), "window", "PAYS", 1, 1, None),)))
    _, _, children = runs_of(uri, study)
    assert "price/slowdown_percent" not in children["w11-s1"].data.metrics


def test_the_experiment_holds_a_view_of_the_study_and_the_report_says_where(uri, study, monkeypatch):
    report = sync(study, uri)
    link = report.link
    assert report.table == f"as a table, while `biaswise ui` runs: {link}"
    monkeypatch.setenv("BIASWISE_DEFAULT_HOME", "/of/a/job")
    assert report.table == f"as a table, while `BIASWISE_HOME=/of/a/job biaswise ui` runs: {link}"
    experiment = MlflowClient(uri).get_experiment_by_name(EXPERIMENT)
    key = link.partition("viewStateShareKey=")[2]
    page = f"#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&"
    assert link.startswith(f"http://127.0.0.1:5000/{page}")
    view = json.loads(experiment.tags[SHARED_VIEW + key])
    assert view["selectedColumns"] == [
        *("metrics.`clean/NDS`", "metrics.`clean/mAP`", "metrics.`train_samples_per_s`"),
        "metrics.`price/slowdown_percent`",
        *("params.`decoder.0.cross`", "params.`decoder.1.cross`", "params.`seed`"),
    ]
    assert view["columnOrder"] == view["selectedColumns"]
    charts = [chart["metricKey"] for chart in view["compareRunCharts"]]
    assert charts.index("clean/NDS") < charts.index("loss")
    found = MlflowClient(uri).search_runs([experiment.experiment_id], view["searchFilter"])
    assert len(found) == 4


def test_the_views_of_the_latest_studies_are_listed_once_each_the_newest_first(uri, tmp_path):
    client = MlflowClient(uri)
    assert latest_views(client, "http://here:1") == {}
    for name, born in (("older", 1000.0), ("newest", 3000.0), ("newer", 2000.0)):
        link = sync(make_study(tmp_path / "runs" / name, name, born), uri).link
        if name == "newest":
            shown = link.replace("127.0.0.1:5000", "here:1")
            sync(make_study(tmp_path / "runs/newest/confirmation", name, born + 1), uri)
    views = latest_views(client, "http://here:1", most=2)
    assert list(views) == ["newest", "newer"]
    assert views["newest"] == shown


def versions(study, trials=("w10-s1", "w00-s1")):
    made = []
    for alias, trial in zip((RECOMMENDED, BASELINE), trials, strict=True):
        folder = study / "trials" / trial
        (folder / "config.py").write_text(f"# {trial}\n")
        if not (folder / "weights.safetensors").exists():
            (folder / "weights.safetensors").write_bytes(trial.encode() * 1000)
        files = (folder / "weights.safetensors", folder / "config.py")
        made.append(Version(alias, folder, files, f"Trial {trial}."))
    return made


def test_the_models_of_a_study_are_registered_once_and_loaded_by_alias(uri, study, tmp_path, monkeypatch):
    sync(study, uri)
    assert versions(study)[0].size_mb == pytest.approx(0.006, abs=1e-4)
    for _ in range(2):
        assert register("shown", versions(study), uri) == ""
    client, name = MlflowClient(uri), model_name("shown")
    assert name == "biaswise-shown"
    assert len(client.search_model_versions(f"name='{name}'")) == 2
    for alias, trial in ((RECOMMENDED, "w10-s1"), (BASELINE, "w00-s1")):
        found = client.get_model_version_by_alias(name, alias)
        assert found.description == f"Trial {trial}."
        assert found.run_id == read_status(study / "trials" / trial).mlflow_run_id
        place = tmp_path / alias
        place.mkdir()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # as people load it
        download_artifacts(f"models:/{name}@{alias}", dst_path=str(place))
        assert (place / "weights.safetensors").read_bytes() == trial.encode() * 1000
        assert (place / "config.py").read_text() == f"# {trial}\n"


def test_a_recommendation_that_changes_moves_its_alias(uri, study):
    sync(study, uri)
    register("shown", versions(study), uri)
    register("shown", versions(study, ("w11-s1", "w00-s1")), uri)
    client, name = MlflowClient(uri), model_name("shown")
    assert client.get_model_version_by_alias(name, RECOMMENDED).tags["biaswise.trial"] == "w11-s1"
    assert len(client.search_model_versions(f"name='{name}'")) == 3


def test_a_store_that_takes_no_model_is_a_warning(study):
    warning = register("shown", versions(study), "gopher://me:planted@nowhere")
    assert warning.startswith("MLflow at gopher://")
    assert "did not register biaswise-shown" in warning
    assert "planted" not in warning
