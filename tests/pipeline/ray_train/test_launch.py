"""A trial under Ray Train: its resources, and what its errors say."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ray.train import WorkerGroupError

from pipeline.config.plan import PlanError
from pipeline.data.sample import DataError
from pipeline.errors import is_user_error
from pipeline.ray_train.launch import _worker_resources, explain

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def settings():
    from experiments.recipes.mini import smoke

    return smoke().trials[0]


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
