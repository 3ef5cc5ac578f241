"""A trial under Ray Train: its resources, and what its errors say."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from pipeline.config.plan import PlanError
from pipeline.data.sample import DataError
from pipeline.errors import TrialMemoryError, is_user_error
from pipeline.ray_train import launch
from pipeline.ray_train.cohort_run import CohortRun
from pipeline.ray_train.launch import Finished, _worker_resources, explain, is_out_of_memory, run_under_ray
from pipeline.runtime.event_log import HUNG, append_event
from pipeline.storage.sync import StorageError
from pipeline.storage.trial_sessions import begin_session, end_session
from pipeline.storage.trial_status import TrialState, read_status

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def settings():
    from experiments.recipes.mini import smoke

    return smoke().trials[0]


@pytest.fixture
def cohort(settings, tmp_path):
    return CohortRun({tmp_path / name: settings for name in "abcde"})


def test_a_failed_worker_is_explained_by_its_last_words():
    error = WorkerGroupError("two workers failed", {1: ValueError("later"), 0: DataError("no such file x")})
    sentence, details = explain(error)
    assert sentence == "worker 0: no such file x"
    assert "DataError" in details


def test_an_error_of_a_worker_is_told_apart_from_a_kill_after_a_hang(monkeypatch, tmp_path, settings):
    """A trial that hung once, and whose data went away later, failed for its data."""
    folder = tmp_path / "trial"
    monkeypatch.setattr(launch, "free_abandoned", lambda: None)
    monkeypatch.setattr(launch, "leave_out_idle_actors", lambda trainer, local: None)

    def ends_by(cause):
        def fit():
            append_event(folder, HUNG, why="no sign of life for 9 s")
            raise WorkerGroupError("a worker failed", {0: cause})

        monkeypatch.setattr(launch, "_trainer", lambda settings: lambda *given, **named: Mock(fit=fit))
        return launch._fit(CohortRun({folder: settings})).error

    raised = UserExceptionWithTraceback(
        DataError("no such file x"), "Traceback ...\nDataError: no such file x"
    )
    assert "no such file x" in ends_by(raised)
    killed = RuntimeError("the actor died unexpectedly")
    assert ends_by(killed) == "it hung; at last there was no sign of life for 9 s"


def test_a_copy_that_cannot_be_fetched_changes_no_end(cohort, monkeypatch, tmp_path):
    """Workers on this machine have marked how trials ended, whatever the store answers."""
    folders = cohort.folders
    for folder in folders:
        begin_session(folder, 0)
    end_session(folders[0])
    sync = Mock(folder=tmp_path, download=Mock(side_effect=StorageError("the store is away")))
    run = replace(cohort, study_sync=sync)
    launch._ended_elsewhere(run, Finished("out of memory", "", out_of_memory=True))
    assert [read_status(folder).state for folder in folders[1:]] == [TrialState.RUNNING] * len(folders[1:])
    launch._ended_elsewhere(run, Finished())
    assert read_status(folders[0]).state == TrialState.COMPLETE
    assert {read_status(folder).error for folder in folders[1:]} == {"the store is away"}


def test_a_worker_reserves_a_cpu_per_thread_and_its_share_of_a_gpu(settings):
    assert _worker_resources(settings, 0.25) == {"CPU": 1}
    assert _worker_resources(replace(settings, device="cuda"), 0.25) == {"CPU": 1, "GPU": 0.25}


def test_our_errors_are_refusals_and_others_are_bugs():
    assert is_user_error(PlanError("x"))
    assert is_user_error(DataError("x"))
    assert not is_user_error(ValueError("x"))
    assert not is_user_error(RuntimeError("x"))


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.ray_train.hang_detection",  # a controller
        "experiments.study.tune_runner",  # a driver
    ],
)
def test_controllers_and_drivers_need_not_import_torch(module):
    code = f"import sys, {module}; print({{'torch', 'mmengine', 'scipy', 'mlflow'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def outcomes(cohort):
    return {folder.name: read_status(folder).error or read_status(folder).state for folder in cohort.folders}


def test_a_cohort_that_does_not_fit_is_halved_until_it_does(cohort, monkeypatch):
    tried, said, remembered = [], [], []

    def fit(run):
        tried.append("".join(folder.name for folder in run.folders))
        if tried == ["abcde"]:
            end_session(run.folders[0])  # it had ended before the others ran out of memory
        elif len(run.trials) == 1 or "b" not in tried[-1]:
            for folder in run.folders:
                end_session(folder)
            return Finished()
        return Finished("out of memory on the cpu", "", out_of_memory=True)

    monkeypatch.setattr(launch, "_fit", fit)
    run_under_ray(cohort, said.append, remember=remembered.append)
    assert tried == ["abcde", "bc", "b", "c", "d", "e"]
    assert set(outcomes(cohort).values()) == {TrialState.COMPLETE}
    assert said[0].startswith("4 trials did not fit into memory together (out of memory on the cpu)")
    assert [sentence.rpartition("from here on ")[2] for sentence in said] == [
        "at most 2 run together",
        "a trial runs alone",
    ]
    assert remembered == [2, 1]


def test_a_cohort_begins_with_as_many_trials_as_fit(cohort, monkeypatch):
    tried, said, remembered = [], [], []

    def fit(run):
        tried.append("".join(folder.name for folder in run.folders))
        for folder in run.folders:
            end_session(folder)
        return Finished()

    monkeypatch.setattr(launch, "_fit", fit)
    run_under_ray(cohort, said.append, 3, remembered.append)
    assert tried == ["ab", "cde"]
    assert said == ["5 trials run in parts of at most 3: more did not fit into memory before"]
    assert remembered == []


def test_a_trial_that_does_not_fit_alone_has_failed(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(
        launch, "_fit", lambda run: Finished("out of memory", "Traceback", out_of_memory=True)
    )
    alone = CohortRun({tmp_path / "a": settings})
    run_under_ray(alone)
    assert outcomes(alone) == {"a": "out of memory"}


def test_what_concerns_all_fails_those_that_have_not_ended(cohort, monkeypatch):
    def fit(run):
        end_session(run.folders[1], "not finite: loss")
        end_session(run.folders[3])
        return Finished("no such file x", "Traceback")

    monkeypatch.setattr(launch, "_fit", fit)
    run_under_ray(cohort)
    failed = dict.fromkeys("ace", "no such file x")
    assert outcomes(cohort) == failed | {"b": "not finite: loss", "d": TrialState.COMPLETE}


def test_memory_that_ran_out_is_told_from_other_errors_of_several_workers():
    assert is_out_of_memory(WorkerGroupError("x", {1: DataError("y"), 0: TrialMemoryError("z")}))
    assert not is_out_of_memory(WorkerGroupError("x", {0: DataError("y")}))
