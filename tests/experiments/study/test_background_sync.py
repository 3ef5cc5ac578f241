"""Which trials are sent while a study runs, with a stand-in for MLflow."""

import io
import itertools
import subprocess
import sys
import time

import pytest
from rich.console import Console

from experiments.study.background_sync import BackgroundSync
from experiments.study.progress import StudyProgress
from pipeline.storage.remote import StorageError
from pipeline.tracking.mlflow_sync import SyncReport
from tests.statuses import write_status


class Store:
    """Stands in for ``sync``: notes which trials it was called with, and fails as often as it is told."""

    def __init__(self, failures=0):
        self.calls, self.failures = [], failures

    def __call__(self, study_folder, trials, progress):
        self.calls.append(sorted(trials))
        self.progress = progress
        warning = "MLflow did not answer" if len(self.calls) <= self.failures else ""
        return SyncReport("", len(trials), 0, 0, warning=warning)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def send(monkeypatch, tmp_path, console, store, names, study_sync=None, enabled=True):
    monkeypatch.setattr("pipeline.tracking.mlflow_sync.sync", store)
    with (
        StudyProgress(console, total=len(names), done=0) as progress,
        BackgroundSync(tmp_path, progress, study_sync, enabled) as background_sync,
    ):
        for name in names:
            background_sync.trial_ended(name)
    return store.calls


def test_each_trial_is_sent_once_by_itself(monkeypatch, tmp_path, console):
    assert send(monkeypatch, tmp_path, console, Store(), ["a", "b", "c"]) == [["a"], ["b"], ["c"]]


def test_what_was_not_taken_is_sent_with_the_next_trial_and_said_once(monkeypatch, tmp_path, console):
    calls = send(monkeypatch, tmp_path, console, Store(failures=2), ["a", "b", "c", "d"])
    assert calls == [["a"], ["a", "b"], ["a", "b", "c"], ["d"]]
    assert console.file.getvalue().count("MLflow did not answer") == 1


def test_nothing_is_sent_that_the_copy_lacks(monkeypatch, tmp_path, console):
    class Copy:
        answers = iter([False, False, True])

        def upload_study(self):
            if not next(self.answers):
                raise StorageError("no room at the URI")

    assert send(monkeypatch, tmp_path, console, Store(), ["a", "b", "c"], Copy()) == [["a", "b", "c"]]
    assert console.file.getvalue().count("no room at the URI") == 1


def test_without_tracking_nothing_is_sent(monkeypatch, tmp_path, console):
    assert send(monkeypatch, tmp_path, console, Store(), ["a"], enabled=False) == []


def test_trials_that_run_are_sent_again_and_again_with_how_far_the_study_is(monkeypatch, tmp_path, console):
    store = Store()
    monkeypatch.setattr("pipeline.tracking.mlflow_sync.sync", store)
    write_status(tmp_path / "trials/a")
    with (
        StudyProgress(console, total=3, done=1) as progress,
        BackgroundSync(tmp_path, progress, None, True, every_s=0.05) as background_sync,
    ):
        background_sync.trial_started("b")
        background_sync.trial_started("c")
        wait_for(lambda: len(store.calls) > 1)
        background_sync.trial_ended("b")
        progress.ended("b")
        wait_for(lambda: store.calls[-1] == ["c"])
        background_sync.trial_ended("c")
        progress.ended("c")
    calls = [call for call, _ in itertools.groupby(store.calls)]
    assert calls[:2] == [["b", "c"], ["b"]]
    assert calls[-1] == ["c"]
    assert (store.progress["trials_done"], store.progress["gpu_hours"]) == (1, 0)
    assert store.progress["trials_left"] in (0, 1)


def wait_for(condition, patience_s=60):
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_running_a_wave_imports_neither_report_nor_mlflow():
    code = "import sys, experiments.study.waves; print([name for name in sys.modules if {words}])"
    words = "name.startswith('experiments.reporting') or name.partition('.')[0] in ('mlflow', 'matplotlib')"
    command = [sys.executable, "-c", code.format(words=words)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
