"""Jobs: what is uploaded, what a refusal says, and a study that is stopped in the middle and goes on."""

import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from experiments.cluster.job_submission import MOST_BYTES, SubmitError, package_bytes, runtime_env, send
from experiments.recipes.mini import smoke
from experiments.storage.study_folder import DONE, StudyFolder
from pipeline.metrics.rows import read_rows
from pipeline.storage.checkpoint import newest_checkpoint
from pipeline.storage.paths import ROOT

PATIENCE_S = 300
BIASWISE = Path(sys.executable).parent / "biaswise"
CONTROL = re.compile(r"\x1b|\r(?!\n)")  # escape sequences, and returns that would write over a line


def packed(env: dict, tmp_path: Path) -> set[str]:
    archive = tmp_path / "package.zip"
    create_package(env["working_dir"], archive, include_gitignore=True, excludes=list(env["excludes"]))
    with zipfile.ZipFile(archive) as file:
        return {name for name in file.namelist() if not name.endswith("/")}


def test_the_upload_holds_the_code_and_is_small(tmp_path):
    env = runtime_env()
    names = packed(env, tmp_path)
    assert (tmp_path / "package.zip").stat().st_size == package_bytes(env) < MOST_BYTES
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "pipeline").rglob("*.py")}
    assert code <= names
    assert {smoke().trials[0].config, "experiments/checkpoints/cmt_aqr_pillar_mini.safetensors"} <= names
    assert {"experiments/reporting/report.html.j2", "experiments/runtime_env.yaml", "pyproject.toml"} <= names
    unwanted = re.compile(r"\.[^/]+/|(data|runs|docs|tests|mlruns|mlartifacts)/|mlflow\.db|.*\.egg-info/")
    assert not [name for name in names if unwanted.match(name)]


def test_a_job_stops_in_a_way_that_lets_a_study_end(monkeypatch):
    env = runtime_env("/shared/biaswise")
    assert env["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    assert int(env["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30
    assert env["env_vars"]["BIASWISE_HOME"] == "/shared/biaswise"
    assert "BIASWISE_HOME" not in runtime_env()["env_vars"]


def test_too_much_to_upload_is_refused_before_anything_is_sent(tmp_path):
    (tmp_path / "weights.bin").write_bytes(os.urandom(MOST_BYTES + 1000))
    env = {**runtime_env(), "working_dir": str(tmp_path)}
    with pytest.raises(SubmitError, match=r"packs to 20 MB, 20 MB at most; move large files"):
        send(["study", "list"], "http://127.0.0.1:1", env)


def test_nobody_answers():
    with pytest.raises(
        SubmitError, match=r"job server http://127\.0\.0\.1:1: nothing answers; `ray start --head`"
    ):
        send(["study", "list"], "http://127.0.0.1:1", runtime_env())


def biaswise(head, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [BIASWISE, *words, "--address", head.address],
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.cluster
@pytest.mark.slow
def test_a_job_is_stopped_in_the_middle_and_the_same_command_ends_the_study(start_head, tmp_path):
    secret = "planted-4f1c9d"
    home = tmp_path / "home"
    head = start_head(
        "--num-cpus=2",
        '--resources={"tune_driver": 2}',
        BIASWISE_HOME=str(home),
        RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",  # a trial ends 5 s sooner
        AWS_SECRET_ACCESS_KEY=secret,
    )
    wrong = dict(head.environment, RAY_AUTH_TOKEN="0" * 64)
    refused = subprocess.run(
        [BIASWISE, "study", "submit", "smoke", "--address", head.address],
        env=wrong,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert "wants another token" in refused.stderr

    first = biaswise(head, "study", "submit", "smoke", "--no-mlflow", "--concurrent", "1")
    folder = StudyFolder(home / "runs/smoke")
    trials = [folder.trial(name) for name in smoke().named_trials()]
    deadline = time.monotonic() + PATIENCE_S
    while not (saved := [newest_checkpoint(trial / "checkpoints") for trial in trials]) or not any(saved):
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    (trial, state), *_ = [(t, s) for t, s in zip(trials, saved, strict=True) if s]
    inode = (state / "state.json").stat().st_ino
    job = re.search(r"raysubmit_\w+", first.stdout.readline())[0]
    stop = [Path(sys.executable).parent / "ray", "job", "stop", "--no-wait", "--address", head.address, job]
    subprocess.run(stop, env=head.environment, check=True, capture_output=True)
    said = first.communicate()[0]
    assert first.returncode == 130, said
    assert "interrupted; what is done is kept, the same command goes on" in said
    assert not all(folder.state(name) == DONE for name in smoke().named_trials())

    second = biaswise(head, "study", "submit", "smoke", "--no-mlflow")
    again = second.communicate()[0]
    assert second.returncode == 0, again
    assert all(folder.state(name) == DONE for name in smoke().named_trials())
    assert (state / "state.json").stat().st_ino == inode, "the checkpoint was gone on from, not written again"
    rows = read_rows(trial / "rows.jsonl")
    keys = [(row.metric, row.site, row.condition, row.step) for row in rows]
    assert len(set(keys)) == len(keys)
    assert all(row.commit for row in rows), "the package has no history; the submitter tells the commit"
    for log in (said, again):
        assert not CONTROL.search(log)
    assert re.search(r"^\d\d:\d\d  \w+ done in \d+ s", again, re.MULTILINE), "one plain line an event"
    written = [path for path in home.rglob("*") if path.is_file()]
    planted = (secret.encode(), head.environment["RAY_AUTH_TOKEN"].encode())
    assert not [path for path in written for word in planted if word in path.read_bytes()]
    assert not [word for word in planted if word.decode() in said + again]
