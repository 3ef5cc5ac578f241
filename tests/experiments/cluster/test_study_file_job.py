"""A study file of the user's own folder, sent to a real head: by ``ray job submit``, by ``study submit``."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.storage.study_folder import StudyFolder
from pipeline.metrics.rows import read_study

BIN = Path(sys.executable).parent
STUDY = """\
from experiments.recipes.registry import recipe as shipped

recipe = shipped("smoke").renamed("mine")
"""


@pytest.mark.cluster
@pytest.mark.slow(seconds=100)
def test_the_file_goes_with_the_job_and_its_study_stays_when_ray_removes_the_copy(start_head, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/my_study.py").write_text(STUDY)
    home = tmp_path / "home"
    head = start_head(
        "--num-cpus=2",
        '--resources={"tune_driver": 2}',
        BIASWISE_HOME=str(home),
        RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",  # a trial ends 5 s sooner
    )

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            words, cwd=tmp_path / "mine", env=head.environment, capture_output=True, text=True
        )

    study = ("biaswise", "study", "run", "my_study.py", "--no-mlflow", "--set", "train.steps=2")
    env = run(str(BIN / "biaswise"), "cluster", "runtime-env").stdout.strip()
    words = ("job", "submit", "--address", head.address, "--working-dir", ".", "--runtime-env", env)
    first = run(str(BIN / "ray"), *words, "--", *study)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 of 2" in first.stdout
    folder = StudyFolder(home / "runs/mine")
    assert all(folder.is_complete(name) for name in folder.trial_names())
    assert {row.study for row in read_study(folder.path)} == {"mine"}
    report = (folder.path / "report.md").read_text()
    assert "Overridden on the command line: --set train.steps=2 (every command of this" in report
    assert "biaswise study run my_study.py --set train.steps=2" in report

    words = ("study", "submit", *study[3:], "--address", head.address)
    same = run(str(BIN / "biaswise"), *words)
    assert same.returncode == 0, same.stdout + same.stderr
    assert "every trial is done already" in same.stdout
    assert not list((tmp_path / "mine").glob("runs")), "everything is at BIASWISE_HOME"
