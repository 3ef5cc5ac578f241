import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ray.train import WorkerGroupError
from ray.train.torch import TorchTrainer

from pipeline.config.plan import PlanError
from pipeline.data.sample import DataError
from pipeline.errors import is_user_error
from pipeline.ray_train.hang_detection import HangCallback
from pipeline.ray_train.launch import _worker_resources
from pipeline.ray_train.local_cluster import LOCAL, _environment
from pipeline.ray_train.trainer import OURS, Trainer, explain

ROOT = Path(__file__).parents[3]


def names(callbacks):
    return {type(callback).__name__ for callback in callbacks}


@pytest.fixture(scope="module")
def settings():
    from experiments.recipes.mini import smoke

    return smoke().trials[0]


def test_idle_actors_are_left_out_and_a_watch_is_added(monkeypatch, tmp_path):
    """Fails if a new version of Ray moves the private hook, or renames what we leave out."""
    all_of_them = names(TorchTrainer(print)._create_default_callbacks())
    trainer = Trainer(HangCallback(tmp_path, 600), print)
    monkeypatch.setenv(OURS, "1")
    assert all_of_them - names(trainer._create_default_callbacks()) == {
        "DatasetsCallback",
        "PlacementGroupCleanerCallback",
    }
    monkeypatch.delenv(OURS)
    assert all_of_them - names(trainer._create_default_callbacks()) == {"DatasetsCallback"}
    assert names(trainer._create_default_callbacks()) - all_of_them == {"HangCallback"}


def test_environment_is_put_back_and_users_settings_win(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv(OURS, raising=False)
    before = dict(os.environ)
    with _environment(LOCAL):
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
        assert os.environ[OURS] == "1"
    assert dict(os.environ) == before


def test_a_failed_worker_is_explained_by_its_last_words():
    error = WorkerGroupError("two workers failed", {1: ValueError("later"), 0: DataError("no such file x")})
    sentence, details = explain(error)
    assert sentence == "worker 0: no such file x"
    assert "DataError" in details


def test_a_worker_reserves_a_cpu_per_thread_and_its_share_of_a_gpu(settings):
    assert _worker_resources(settings, 0.25) == {"CPU": 1}
    assert _worker_resources(replace(settings, device="cuda"), 0.25) == {"CPU": 1, "GPU": 0.25}


def test_our_errors_are_refusals_and_others_are_bugs():
    assert is_user_error(PlanError("x"))
    assert is_user_error(DataError("x"))
    assert not is_user_error(ValueError("x"))
    assert not is_user_error(RuntimeError("x"))


def test_controllers_need_not_import_torch():
    """A controller imports the worker's module for the class of its backend."""
    code = "import sys, pipeline.ray_train.worker; print({'torch', 'mmengine'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
