"""While trials run: the study driver tells of workers that wait for room."""

import io

import pytest
import ray
from ray.util.placement_group import remove_placement_group

from experiments.storage.study_folder import StudyFolder
from experiments.study.background_sync import BackgroundSync
from experiments.study.progress import StudyProgress
from experiments.study.tune_watcher import StudyWatcher
from experiments.terminal import Terminal
from pipeline.ray_train import reservations
from pipeline.ray_train.local_cluster import ray_session
from tests.stand_in_controller import reserve


@pytest.fixture(scope="module")
def session():
    """Ray on this machine, with a CPU."""
    with ray_session(cpus=1) as resources:
        yield resources


def test_the_study_driver_tells_of_workers_that_wait(session, tmp_path, monkeypatch):
    monkeypatch.setattr(reservations, "LOOK_S", 0.0)
    monkeypatch.setattr(reservations, "FIRST_WORD_S", 0.0)
    controller, group = reserve(2)
    console = Terminal(file=io.StringIO(), width=200)
    with StudyProgress(console, total=1, done=0) as progress:
        sync = BackgroundSync(tmp_path, progress, None, enabled=False)
        StudyWatcher(StudyFolder(tmp_path), progress, sync).on_step_end(0, [])
    remove_placement_group(group)
    ray.kill(controller)
    assert "for room: they need 1 worker with 2 CPU each; free now: 1 of 1 CPU" in console.file.getvalue()
