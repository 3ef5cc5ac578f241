"""A real study in MLflow: looked at while its trials run, and after it, and after a second run of it."""

import io
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from experiments.recipes.mini import cross_plan, smoke
from experiments.study.background_sync import BackgroundSync
from experiments.study.run_study import RunOptions, run_study
from experiments.terminal import Terminal
from pipeline.config.settings import DataSettings
from pipeline.detector.build import load_config
from pipeline.metrics.system_monitor import INTERVAL
from pipeline.tracking.mlflow_store import EXPERIMENT
from tests.smallest import SMALLEST

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(seconds=120),
    pytest.mark.skipif(sys.platform != "linux", reason="as the other studies under Ray"),
    pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::sqlalchemy", "ignore:::alembic"),
]


@pytest.fixture
def recipe(smoke_world):
    """Two arms with two seeds, of enough steps to be looked at while they run."""
    small = smoke()
    data = DataSettings(train=(smoke_world.root,), val=smoke_world.root)
    arms = [cross_plan(("none",) * 3), cross_plan(("window", "none", "none"))]
    base = replace(
        small.trials[0], data=data, overrides=SMALLEST, train=replace(small.trials[0].train, steps=40)
    )
    trials = tuple(replace(base, plan=plan, seed=seed) for seed in (0, 1) for plan in arms)
    rule = replace(small.rule, seeds=(0, 1))
    return replace(small, trials=trials, rule=rule, datasets=(smoke_world,), concurrent_trials=1)


class Onlooker(threading.Thread):
    """Asks MLflow again and again, as somebody in front of its pages does."""

    def __init__(self, uri):
        super().__init__(daemon=True)
        self.uri, self.over = uri, threading.Event()
        self.running, self.progress, self.parents = set(), set(), set()

    def run(self):
        client = MlflowClient(self.uri)
        while not self.over.wait(1):
            with suppress(MlflowException, AttributeError):  # not there yet
                experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
                for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
                    if run.data.tags["biaswise.kind"] == "trial":
                        self.running |= set(run.data.metrics)
                    else:
                        self.progress |= set(run.data.metrics)
                        self.parents.add(run.info.run_id)


def test_a_study_is_seen_while_it_runs_and_after_it_with_its_models(recipe, tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv(INTERVAL, "1")
    MlflowClient(uri).search_experiments()
    monkeypatch.setattr("experiments.study.tune_runner.BackgroundSync", partial(BackgroundSync, every_s=1.0))
    options = RunOptions(tmp_path / "runs", confirmation=False, underpowered=True)
    said = io.StringIO()
    onlooker = Onlooker(uri)
    onlooker.start()
    outcome = run_study(recipe, options, Terminal(file=said, width=300))
    onlooker.over.set()
    onlooker.join()
    assert outcome.complete
    assert {"loss", "learning_rate", "samples_per_s", "bias_scale"} <= onlooker.running
    assert "system/cpu_utilization_percentage" in onlooker.running
    assert {"progress/trials_done", "progress/gpu_hours", "progress/hours_left"} <= onlooker.progress
    client, (parent_id,) = MlflowClient(uri), onlooker.parents
    parent = client.get_run(parent_id)
    assert (parent.info.status, parent.data.metrics["progress/trials_left"]) == ("FINISHED", 0)
    assert f"MLflow: registering biaswise-{recipe.name}: recommended " in said.getvalue()
    for alias in ("recommended", "baseline"):
        version = client.get_model_version_by_alias(f"biaswise-{recipe.name}", alias)
        place = client.download_artifacts(version.run_id, "model")
        plan = client.get_run(version.run_id).data.tags["biaswise.plan"]
        config = load_config(f"{place}/config.py")
        assert config.model.image_size == [48, 112]  # what the trial overrode
        layers = config.model.pts_bbox_head.transformer.decoder.transformerlayers
        first = layers[0] if isinstance(layers, list) else layers
        assert f"decoder.0.cross={first['attn_cfgs'][1]['bias']}/" in plan
    models = f"name='biaswise-{recipe.name}'"
    registered = [version.version for version in client.search_model_versions(models)]
    begun = time.time()
    run_study(recipe, options, Terminal(file=said, width=300))
    assert "every trial is done already" in said.getvalue()
    again = client.search_runs([parent.info.experiment_id], "tags.`biaswise.kind` = 'study'")
    assert [(run.info.run_id, run.info.status) for run in again] == [(parent_id, "FINISHED")]
    assert again[0].info.end_time / 1000 < begun
    assert [version.version for version in client.search_model_versions(models)] == registered


class Interrupter(Onlooker):
    """Sends this process what Ctrl-C sends, as soon as MLflow shows a loss of a running trial."""

    def run(self):
        looking = threading.Thread(target=super().run, daemon=True)
        looking.start()
        while not self.over.wait(0.5):
            if "loss" in self.running:
                self.over.set()
                os.kill(os.getpid(), signal.SIGINT)


def test_a_study_that_is_interrupted_is_killed_in_mlflow_and_so_are_its_trials(recipe, tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    MlflowClient(uri).search_experiments()
    monkeypatch.setattr("experiments.study.tune_runner.BackgroundSync", partial(BackgroundSync, every_s=1.0))
    long = replace(
        recipe, trials=tuple(replace(t, train=replace(t.train, steps=4000)) for t in recipe.trials)
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may run where it is ignored
    hand = Interrupter(uri)
    hand.start()
    options = RunOptions(tmp_path / "runs", confirmation=False, underpowered=True)
    with pytest.raises(KeyboardInterrupt):
        run_study(long, options, Terminal(file=io.StringIO()))
    hand.join()
    signal.signal(signal.SIGINT, before)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert {run.data.tags["biaswise.kind"] for run in runs} == {"study", "trial"}
    assert {run.info.status for run in runs} == {"KILLED"}
