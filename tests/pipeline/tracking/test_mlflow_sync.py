"""MLflow gets every row once: first, second and resumed syncs, lost cursors, dead servers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from experiments.reporting.report import write_report
from experiments.study.final_report import write_verdicts
from pipeline.metrics.rows import Row, append_rows, read_rows
from pipeline.storage.trial_status import TrialState, set_mlflow_run_id
from pipeline.tracking import study_reader
from pipeline.tracking.mlflow_server import TrackingError, default_uri, served_uri
from pipeline.tracking.mlflow_store import EXPERIMENT, prepare_store
from pipeline.tracking.mlflow_sync import sync
from pipeline.tracking.naming import metric_key, search_hint, trial_params
from pipeline.tracking.study_sender import CURSOR
from pipeline.tracking.study_verdicts import SiteVerdict, StudyVerdicts
from tests.experiments.planted_rows import Truth, decorate, plant, plant_times, window_rule
from tests.machine import unused_port
from tests.statuses import write_status

# MLflow and what it pulls in announce their own future changes; none of it is about our calls.
pytestmark = pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::sqlalchemy", "ignore:::alembic")

SITES = {"decoder.0.cross": 1.0, "decoder.1.cross": 0.0}
SEEDS = (1,)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A database with its tables, which the first connection takes 3 s to make."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="module")
def uri(empty_store):
    return f"sqlite:///{shutil.copy(empty_store, empty_store.with_name('mlflow.db'))}"


@pytest.fixture
def study(tmp_path, request):
    """A finished study of four trials, its name that of the test."""
    return make_study(tmp_path / "runs" / request.node.name, request.node.name)


def make_study(folder: Path, name: str, born: float = 1000.0) -> Path:
    base = Row(name, "", "", "", "", 0.0, step=100, device="cpu", commit="abc", recipe_digest="r1", time=born)
    rows = list(decorate(plant(Truth(SITES, seeds=SEEDS), base=base)))
    for trial in {row.trial for row in rows}:
        place = folder / "trials" / trial
        append_rows(place / "rows.jsonl", [row for row in rows if row.trial == trial])
        (place / "settings.json").write_text(
            json.dumps({"seed": 0, "train": {"steps": 100}, "init_checkpoint": "mini"})
        )
        write_status(place)
    (folder / "study.json").write_text("{}")
    return folder


def runs_of(uri, study):
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    runs = client.search_runs([experiment], f"tags.`biaswise.study` = '{study.name}'")
    parents = [run for run in runs if run.data.tags["biaswise.kind"] == "study"]
    return client, parents, {r.info.run_name: r for r in runs if r.data.tags["biaswise.kind"] == "trial"}


def points(client, run):
    """All points of a run's curves: {(key, step, time, value)}, with repetitions."""
    return sorted(
        (key, p.step, p.timestamp, p.value)
        for key in run.data.metrics
        for p in client.get_metric_history(run.info.run_id, key)
    )


def assert_complete(uri, study):
    client, parents, children = runs_of(uri, study)
    assert len(parents) == 1
    folders = sorted((study / "trials").iterdir())
    assert sorted(children) == [folder.name for folder in folders]
    for folder in folders:
        run = children[folder.name]
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        rows = [r for r in read_rows(folder / "rows.jsonl") if not r.kernel]
        expected = sorted((metric_key(r), r.step, round(r.time * 1000), r.value) for r in rows)
        assert points(client, run) == expected


def test_a_study_becomes_a_parent_and_its_children(uri, study):
    report = sync(study, uri)
    assert (report.trials, report.unsent, report.warning) == (4, 0, "")
    assert report.sent == sum(len(read_rows(path)) for path in study.glob("trials/*/rows.jsonl"))
    assert_complete(uri, study)
    client, (parent,), children = runs_of(uri, study)
    run = children["w10-s1"]
    assert report.parent == parent.info.run_id
    assert {run.info.status, parent.info.status} == {"FINISHED"}
    assert run.data.params["decoder.0.cross"] == "window"
    assert run.data.params["decoder.0.cross.impl"] == "sdpa_math"
    assert run.data.params["decoder.1.cross"] == "none"
    assert (run.data.params["seed"], run.data.params["train.steps"]) == ("1", "100")
    assert "aten::add" in run.data.tags["kernels.decoder.0.cross"]
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {"rows.jsonl", "settings.json"}
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} == {"study.json"}


def test_the_ui_can_search_by_the_choice_at_a_site(uri, study):
    sync(study, uri)
    client, (parent,), _ = runs_of(uri, study)
    wanted = f"params.`decoder.0.cross` = 'window' and tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    assert len(client.search_runs([parent.info.experiment_id], wanted)) == 2
    hint = search_hint(Row(study.name, "", "decoder.0.cross=none/flex", "", "", 0.0)).split("`")[1]
    assert len(client.search_runs([parent.info.experiment_id], hint)) == 2


@pytest.mark.parametrize("lose_cursor", [False, True])
def test_sent_twice_nothing_doubles(uri, study, lose_cursor):
    sync(study, uri)
    if lose_cursor:
        (study / CURSOR).unlink()
    again = sync(study, uri)
    assert again.unsent == 0
    assert (again.sent > 0) == lose_cursor
    assert_complete(uri, study)


def test_new_rows_are_sent_and_only_those(uri, study):
    write_status(study / "trials/w00-s1", TrialState.RUNNING)
    sync(study, uri)
    _, (parent,), children = runs_of(uri, study)
    assert {children["w00-s1"].info.status, parent.info.status} == {"RUNNING"}
    file = study / "trials/w00-s1/rows.jsonl"
    append_rows(file, [replace(row, step=200) for row in read_rows(file) if row.metric == "NDS"])
    write_status(study / "trials/w00-s1")
    assert sync(study, uri).sent == 1
    assert_complete(uri, study)
    _, (parent,), children = runs_of(uri, study)
    assert {children["w00-s1"].info.status, parent.info.status} == {"FINISHED"}


def test_the_curves_of_a_trial_grow_while_it_runs_and_only_new_lines_are_read(uri, study, monkeypatch):
    folder = study / "trials/w00-s1"
    file, whole = folder / "rows.jsonl", (folder / "rows.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    write_status(folder, TrialState.RUNNING)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # the fourth is being written
    assert sync(study, uri, ["w00-s1"]).sent > 3  # the store does not know the study yet, and gets all of it
    for known, more in ((3, 6), (6, len(lines))):
        file.write_bytes(b"".join(lines[:more]))
        read = count_calls(monkeypatch, study_reader, "read_rows_from")
        report = sync(study, uri, ["w00-s1"])
        assert (report.sent, report.unsent) == (more - known, 0)
        assert sum(len(line) for line in lines[:known]) in [start for _, start, *_ in read]
        client, (parent,), children = runs_of(uri, study)
        assert {parent.info.status, children["w00-s1"].info.status} == {"RUNNING"}
        made = {a.path for a in client.list_artifacts(children["w00-s1"].info.run_id)}
        assert made == {"settings.json"}
    write_status(folder)
    sync(study, uri, ["w00-s1"])
    assert_complete(uri, study)
    client, (parent,), children = runs_of(uri, study)
    assert "rows.jsonl" in {a.path for a in client.list_artifacts(children["w00-s1"].info.run_id)}


def test_a_cursor_inside_a_line_sends_everything_again(uri, study):
    sync(study, uri)
    cursor = json.loads((study / CURSOR).read_text())
    cursor["bytes"] = {run: number - 5 for run, number in cursor["bytes"].items()}
    (study / CURSOR).write_text(json.dumps(cursor))
    assert sync(study, uri).sent == sum(len(read_rows(path)) for path in study.glob("trials/*/rows.jsonl"))
    assert_complete(uri, study)


def samples(times, node=0, trials=1):
    """Lines of a worker's file on its machine."""
    made = [
        {"time": t, "node": node, "trials": trials, "metrics": {"cpu_utilization_percentage": t % 100}}
        for t in times
    ]
    return "".join(json.dumps(sample) + "\n" for sample in made)


def test_what_the_machine_did_is_in_the_system_tab_of_its_trial_once(uri, study):
    folder = study / "trials/w00-s1"
    (folder / "system_0.jsonl").write_text(samples([1010, 1020]) + '{"time": 10')
    (folder / "system_8.jsonl").write_text(samples([1011], node=1))
    sync(study, uri)
    (folder / "system_0.jsonl").write_text(samples([1010, 1020]) + "no sample\n" + samples([1030]))
    for _ in range(2):
        sync(study, uri, ["w00-s1"])
    client, _, children = runs_of(uri, study)
    run = children["w00-s1"]
    seen = client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    assert [(p.step, p.timestamp, p.value) for p in seen] == [
        (10, 1010_000, 10),
        (20, 1020_000, 20),
        (30, 1030_000, 30),
    ]
    (other,) = client.get_metric_history(run.info.run_id, "system/node_1/cpu_utilization_percentage")
    assert (other.step, other.value) == (11, 11)
    assert run.data.tags["biaswise.system_metrics"] == "of the machine that trains"
    assert not [key for key in children["w10-s1"].data.metrics if key.startswith("system/")]


def test_samples_of_trials_that_train_together_say_so(uri, study):
    (study / "trials/w00-s1/system_0.jsonl").write_text(samples([1010], trials=4))
    sync(study, uri)
    _, _, children = runs_of(uri, study)
    assert "shared by 4 trials" in children["w00-s1"].data.tags["biaswise.system_metrics"]


def test_the_studys_run_shows_how_far_it_is(uri, study):
    sync(study, uri, progress={"trials_done": 1.0})
    sync(study, uri, ["w00-s1"], progress={"trials_done": 2.0, "hours_left": 0.5})
    client, (parent,), _ = runs_of(uri, study)
    done = client.get_metric_history(parent.info.run_id, "progress/trials_done")
    assert [point.value for point in done] == [1, 2]
    assert all(
        point.step == pytest.approx(time.time() - 1000, abs=60) for point in done
    )  # its first row: 1000
    assert parent.data.metrics["progress/hours_left"] == 0.5


def test_failed_trials_and_missing_ones_are_states(uri, study):
    write_status(study / "trials/w01-s1", TrialState.FAILED)
    sync(study, uri)
    _, (parent,), children = runs_of(uri, study)
    assert (children["w01-s1"].info.status, parent.info.status) == ("FAILED", "RUNNING")
    write_status(study / "trials/w01-s1")
    (study / "study.json").write_text('{"trials": ["w00-s1", "to-come"]}')
    sync(study, uri)
    _, (parent,), children = runs_of(uri, study)
    assert (children["w01-s1"].info.status, parent.info.status) == ("FINISHED", "RUNNING")


def test_a_spoilt_cursor_is_as_good_as_none(uri, study):
    sync(study, uri)
    (study / CURSOR).write_text('{"rows": 3')
    assert sync(study, uri).unsent == 0
    assert_complete(uri, study)


def test_a_study_run_anew_gets_new_runs(uri, study):
    first = sync(study, uri).parent
    other = make_study(study.parent / "again", study.name, born=2000.0)
    assert sync(other, uri).parent != first
    _, parents, _ = runs_of(uri, study)
    assert len(parents) == 2


def test_another_store_gets_everything_although_the_cursor_is_full(uri, study, empty_store, tmp_path):
    total = sync(study, uri).sent
    second = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'second.db')}"
    assert sync(study, second).sent == total
    assert_complete(second, study)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", ["study", "trial"])
def test_a_deleted_run_gets_everything_again(uri, study, kind, whole):
    sync(study, uri)
    client, (parent,), children = runs_of(uri, study)
    deleted = parent if kind == "study" else children["w10-s1"]
    client.delete_run(deleted.info.run_id)
    assert sync(study, uri, None if whole else ["w10-s1"]).unsent == 0
    sync(study, uri)
    if kind == "study":  # its old children are no longer those of an active run
        for run in children.values():
            client.delete_run(run.info.run_id)
    assert_complete(uri, study)
    _, (parent,), children = runs_of(uri, study)
    assert deleted.info.run_id not in {parent.info.run_id, *(run.info.run_id for run in children.values())}


def test_a_trial_that_has_ended_is_sent_by_reading_its_rows_alone(uri, study, monkeypatch):
    """Trials end one after the other: the first sync reads what there is, each later one a single file."""
    trials = sorted((study / "trials").iterdir())
    waiting = study.with_name("waiting")
    for folder in trials[1:]:
        shutil.move(folder, waiting / folder.name)
    sync(study, uri, [trials[0].name])
    for folder in trials[1:]:
        shutil.move(waiting / folder.name, folder)
        read = count_calls(monkeypatch, study_reader, "read_rows_from")
        report = sync(study, uri, [folder.name])
        assert {path for path, *_ in read} == {folder.resolve() / "rows.jsonl"}
        assert (report.trials, report.unsent, report.warning) == (1, 0, "")
        assert report.sent == len(read_rows(folder / "rows.jsonl"))
    assert_complete(uri, study)
    assert sync(study, uri).sent == 0
    _, (parent,), _ = runs_of(uri, study)
    assert parent.info.status == "FINISHED"


def test_a_run_is_searched_only_if_its_trials_folder_names_none(uri, study, monkeypatch):
    sync(study, uri)
    searches = count_calls(monkeypatch, MlflowClient, "search_runs")
    sync(study, uri, ["w10-s1"])
    assert searches == []
    set_mlflow_run_id(study / "trials" / "w10-s1", "")
    assert sync(study, uri, ["w10-s1"]).sent == 0
    assert len(searches) == 1
    sync(study, uri, ["w10-s1"])
    assert len(searches) == 1
    assert_complete(uri, study)


def test_a_store_that_does_not_know_the_study_gets_all_of_it_for_one_trial(study, uri, empty_store, tmp_path):
    total = sync(study, uri).sent
    second = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'second.db')}"
    assert sync(study, second, ["w10-s1"]).sent == total
    assert_complete(second, study)


def test_of_runs_that_lost_answers_have_made_the_known_one_is_kept(uri, study):
    """A request that is repeated after its answer was lost leaves a second run with the same tags."""
    sync(study, uri)
    client, (parent,), children = runs_of(uri, study)
    known = children["w10-s1"]
    client.create_run(known.info.experiment_id, tags=known.data.tags, run_name="w10-s1")
    assert sync(study, uri).sent == 0
    assert_complete(uri, study)
    _, (same,), children = runs_of(uri, study)
    assert same.info.run_id == parent.info.run_id
    assert children["w10-s1"].info.run_id == known.info.run_id
    runs = client.search_runs([known.info.experiment_id], f"tags.`biaswise.study` = '{study.name}'")
    assert len(runs) == 1 + len(children)


def test_a_trial_without_rows_is_nothing_to_send(uri, study):
    assert sync(study, uri, ["no-such-trial"]).warning == ""


def count_calls(monkeypatch, owner, name):
    """Note the positional arguments of every call of a function."""
    calls, original = [], getattr(owner, name)

    def counting(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return calls


def test_verdicts_that_are_handed_over_are_sent_and_no_file_is_read(uri, study):
    verdicts = StudyVerdicts((SiteVerdict("decoder.0.cross", "window", "PAYS", 2.0, 1.5, None),))
    (study / "verdicts.json").write_text("not read")
    sync(study, uri, verdicts=verdicts)
    _, (parent,), _ = runs_of(uri, study)
    assert parent.data.tags["verdict.decoder.0.cross"] == "PAYS"
    assert parent.data.metrics == {"gain/decoder.0.cross": 2.0, "net_gain/decoder.0.cross": 1.5}


def test_a_store_is_prepared_before_trials_start(tmp_path):
    store = f"sqlite:///{tmp_path / 'new.db'}"
    assert prepare_store(store) == ""
    assert MlflowClient(store).get_experiment_by_name(EXPERIMENT) is not None
    warning = prepare_store("gopher://me:planted@nowhere")
    assert warning.startswith("MLflow at gopher://")
    assert "biaswise study sync" in warning
    assert "planted" not in warning


def judged(study):
    """Give the study a rule, and write its report."""
    (row, *_) = read_rows(next(study.glob("trials/*/rows.jsonl")))
    prices = {"fixed": 0.001} | dict.fromkeys(SITES, 0.001)
    append_rows(study / "stopwatch/rows.jsonl", plant_times(prices, base=replace(row, condition="")))
    (study / "study.json").write_text(json.dumps({"name": study.name, "rule": window_rule().to_dict()}))
    report = write_report(study, lambda plan: f"# {plan}\n")
    write_verdicts(report.summary, study)
    return report


def test_the_ui_alone_shows_verdicts_report_and_figures(uri, study):
    report = judged(study)
    evidence = report.summary.evidence
    sync(study, uri)
    (study / "report.md").write_text("The window costs.\n")
    sync(study, uri)
    client, (parent,), _ = runs_of(uri, study)
    run_id, data = parent.info.run_id, parent.data
    for verdict in evidence.verdicts:
        assert data.tags[f"verdict.{verdict.site}"] == verdict.verdict
        assert data.metrics[f"net_gain/{verdict.site}"] == verdict.net
    assert data.tags["verdict.recommended"].startswith("window at ")
    assert data.metrics["recommended/utility"] > 0
    advice = report.summary.advice
    assert data.metrics["recommended/predicted_gain"] == advice.best.gain
    assert data.metrics["recommended/measured_accuracy"] == advice.measured.accuracy
    measured_gain = advice.measured.accuracy - advice.baseline.accuracy
    assert data.metrics["recommended/measured_gain"] == pytest.approx(measured_gain)
    assert len(client.get_metric_history(run_id, "gain/decoder.0.cross")) == 1
    assert data.tags["mlflow.note.content"].endswith("`\n\nThe window costs.\n")
    assert Path(client.download_artifacts(run_id, "report.md")).read_text() == "The window costs.\n"
    assert {"report.html", "recommended.py", "plans.csv", "verdicts.json"} <= {
        a.path for a in client.list_artifacts(run_id)
    }
    figures = {a.path for a in client.list_artifacts(run_id, "figures")}
    assert figures == {f"figures/{path.name}" for path in (study / "figures").iterdir()}


def test_a_verdict_that_was_withdrawn_leaves_the_parent(uri, study):
    judged(study)
    sync(study, uri)
    (study / "verdicts.json").unlink()
    sync(study, uri)
    _, (parent,), _ = runs_of(uri, study)
    assert not [key for key in parent.data.tags if key.startswith("verdict.")]


def test_the_picture_of_a_scene_is_a_trials_artifact(uri, study):
    (study / "trials" / "w10-s1" / "scene.png").write_bytes(b"\x89PNG")
    sync(study, uri)
    client, _, children = runs_of(uri, study)
    assert "scene.png" in {a.path for a in client.list_artifacts(children["w10-s1"].info.run_id)}


def test_a_dead_server_leaves_a_warning_and_the_rows(uri, study, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    dead = f"http://127.0.0.1:{unused_port()}"
    report = sync(study, dead)
    assert (report.sent, report.parent) == (0, "")
    assert report.unsent == sum(len(read_rows(path)) for path in study.glob("trials/*/rows.jsonl"))
    assert dead in report.warning
    assert "biaswise study sync" in report.warning
    assert sync(study, uri).unsent == 0
    assert_complete(uri, study)


@pytest.mark.parametrize(
    "bad",
    ["sqlite:////proc/mlflow.db", "file:///tmp/mlruns", "gopher://nowhere", "mysql://nobody@127.0.0.1/x"],
)
def test_a_store_that_cannot_be_is_a_warning(study, bad):
    report = sync(study, bad)
    assert report.sent == 0
    assert report.warning.count("\n") == 0
    assert bad in report.warning


def test_a_study_without_rows(tmp_path, uri):
    assert "no rows yet" in sync(tmp_path, uri).warning


@pytest.mark.slow
def test_two_processes_may_create_the_database_at_once(study, tmp_path, quick_python):
    code = (
        "import sys; from pathlib import Path; from pipeline.tracking.mlflow_sync import sync;"
        "print(sync(Path(sys.argv[1]), sys.argv[2]).warning)"
    )
    (tmp_path / "racer.py").write_text(code)
    store = f"sqlite:///{tmp_path / 'raced.db'}"
    words = [quick_python["QUICK_PYTHON"], str(tmp_path / "racer.py"), str(study), store]
    given = os.environ | quick_python
    racers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=given) for _ in range(2)]
    assert [racer.communicate()[0].strip() for racer in racers] == ["", ""]
    assert_complete(store, study)


def test_where_rows_go_by_default(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert default_uri() == "http://tracking:5000"


def test_the_ui_needs_a_database_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TrackingError, match=r"there is no .*mlflow.db"):
        served_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    with pytest.raises(TrackingError, match="its own UI"):
        served_uri()


@pytest.mark.slow
def test_the_ui_answers_and_ends_when_interrupted(uri):
    port = unused_port()
    wanted = "start_ui('127.0.0.1', int(sys.argv[1]), sys.argv[2])"
    code = f"import sys; from pipeline.tracking.mlflow_server import start_ui; {wanted}"
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(port), uri], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        assert "<title>MLflow" in page_of(f"http://127.0.0.1:{port}/", patience_s=90)
    finally:
        os.killpg(server.pid, signal.SIGINT)  # as Ctrl-C in a terminal
        server.wait(timeout=30)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1)


def page_of(address, patience_s):
    for _ in range(4 * patience_s):
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            time.sleep(0.25)
    raise TimeoutError(address)


def test_keys_group_by_condition_and_params_name_rank_and_window():
    row = Row("s", "t", "a.0.cross=window:15/lowrank@8", "AP/car", "fraction", 0.5, condition="no_lidar")
    assert metric_key(row) == "no_lidar/AP/car"
    assert metric_key(replace(row, condition="", metric="loss(x)")) == "loss_x_"
    params = trial_params(row, {"data": {"train": ["a", "b"]}})
    assert (params["a.0.cross"], params["a.0.cross.window"]) == ("window", "15")
    assert (params["a.0.cross.rank"], params["data.train"]) == ("8", "a, b")
