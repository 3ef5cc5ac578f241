"""Where data and runs are: in the current folder, at BIASWISE_HOME, or, for a Ray job, in the home folder."""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from experiments.cli.main import build_parser
from experiments.cluster.job_submission import runtime_env
from pipeline.metrics.versions import commit
from pipeline.storage.paths import ROOT, default_runs_dir, home, resolve_path, with_home
from pipeline.tracking.mlflow_server import default_uri

CONFIG = "experiments/configs/cmt_aqr_pillar_mini.py"


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("BIASWISE_HOME", "BIASWISE_DEFAULT_HOME", "BIASWISE_COMMIT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_in_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert home() == tmp_path
    assert resolve_path("data/mini") == tmp_path / "data/mini"
    assert resolve_path(CONFIG) == ROOT / CONFIG, "what comes with the code is read there"
    assert resolve_path("/elsewhere/data") == Path("/elsewhere/data")
    assert (default_runs_dir(), default_uri()) == ("runs", f"sqlite:///{tmp_path}/mlflow.db")


def test_at_the_place_that_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("BIASWISE_HOME", str(tmp_path))
    assert resolve_path("data/mini") == tmp_path / "data/mini"
    assert resolve_path("/elsewhere/data") == Path("/elsewhere/data")
    assert resolve_path(CONFIG) == ROOT / CONFIG, "what comes with the code is read there"
    assert default_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    arguments = build_parser().parse_args(["study", "run", "smoke"])
    assert arguments.runs_dir == str(tmp_path / "runs")


def test_in_a_ray_job_nothing_is_kept_in_the_copy_that_ray_removes(monkeypatch, tmp_path):
    """A job has the variables of runtime_env.yaml, above those of the machines where it runs."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    job = yaml.safe_load((ROOT / "experiments/runtime_env.yaml").read_text())["env_vars"]
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert home() == tmp_path / "me/biaswise"
    assert resolve_path("data/mini") == tmp_path / "me/biaswise/data/mini"
    assert resolve_path(CONFIG) == ROOT / CONFIG


def test_in_a_ray_job_the_home_of_the_cluster_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("BIASWISE_HOME", str(tmp_path))
    for name, value in runtime_env()["env_vars"].items():
        monkeypatch.setenv(name, value)
    assert home() == tmp_path
    for name, value in runtime_env("/shared/of the job")["env_vars"].items():
        monkeypatch.setenv(name, value)
    assert home() == Path("/shared/of the job"), "`biaswise study submit --home` wins over both"


def test_a_file_that_was_uploaded_with_a_job_is_found_beside_it(monkeypatch, tmp_path):
    monkeypatch.setenv("BIASWISE_DEFAULT_HOME", str(tmp_path / "home"))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/my_config.py").touch()
    monkeypatch.chdir(tmp_path / "copy")
    assert resolve_path("my_config.py") == tmp_path / "copy/my_config.py"
    assert resolve_path("other.py") == tmp_path / "home/other.py"
    (tmp_path / "home").mkdir()
    (tmp_path / "home/my_config.py").touch()
    assert resolve_path("my_config.py") == tmp_path / "home/my_config.py"


def test_an_installed_package_has_no_commit_of_a_repository_around_it(monkeypatch, tmp_path):
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-qm", "theirs", "--allow-empty"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr("pipeline.metrics.versions.ROOT", tmp_path / "venv/site-packages")
    (tmp_path / "venv/site-packages").mkdir(parents=True)
    assert commit() == ""


def test_commit_of_code_without_history_is_what_the_submitter_says(monkeypatch):
    monkeypatch.setenv("PATH", "")  # no git
    assert commit() == ""
    monkeypatch.setenv("BIASWISE_COMMIT", "0123456789ab+")
    assert commit() == "0123456789ab+"


def test_a_command_works_from_a_shell_that_does_not_know_the_home_of_a_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BIASWISE_HOME", raising=False)
    monkeypatch.delenv("BIASWISE_DEFAULT_HOME", raising=False)
    assert with_home("biaswise ui") == "biaswise ui"
    monkeypatch.setenv("BIASWISE_DEFAULT_HOME", str(tmp_path / "a job's"))
    assert shlex.split(with_home("biaswise ui")) == [f"BIASWISE_HOME={tmp_path}/a job's", "biaswise", "ui"]
