"""A study kept in a bucket: killed, its folder lost, and gone on with from the bucket elsewhere."""

import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.cli import main
from experiments.recipes.mini import smoke
from experiments.storage.remote_study import stored_study
from experiments.storage.study_folder import STORAGE_FILE, StudyFolder
from experiments.study.trial_order import in_running_order
from pipeline.metrics.rows import read_rows
from pipeline.runtime.event_log import starts_of
from pipeline.runtime.session import LocalSession
from pipeline.storage.trial_status import TrialState, is_unchanged, read_status
from pipeline.training.trial import run_trial
from tests.machine import offspring
from tests.smallest import SMALLEST

ROOT = Path(__file__).parents[3]
PROGRAM = """
import os, pickle, sys
from pathlib import Path
from rich.console import Console
from experiments.study.run_study import RunOptions, run_study

if __name__ == "__main__":
    sys.executable = os.environ["QUICK_PYTHON"]  # of Ray's processes
    recipe = pickle.loads(Path(sys.argv[1]).read_bytes())
    options = RunOptions(Path(sys.argv[2]), 1, tracking=False, storage=sys.argv[3])
    sys.exit(not run_study(recipe, options, Console(width=200)).complete)
"""
PATIENCE_S = 600
"""The whole needs a minute, on a machine that does much else ten times that."""


@pytest.fixture
def recipe(smoke_world):
    """Two trials of twelve steps, a checkpoint after every other."""
    trials = tuple(
        replace(
            settings,
            data=replace(settings.data, train=(smoke_world.root,), val=smoke_world.root),
            train=replace(settings.train, steps=12, checkpoint_every=2),
            overrides=SMALLEST,
        )
        for settings in smoke().trials
    )
    # one after the other, so that one is done when the other is killed
    return replace(smoke(), trials=trials, datasets=(smoke_world,), arms_per_worker=1)


def numbers(folder):
    """Everything that is measured and is no time."""
    found = {}
    for path in folder.path.glob("trials/*/rows.jsonl"):
        for row in read_rows(path):
            if row.unit not in ("ms", "samples/s", "GiB", "s", "label"):
                key = (row.trial, row.metric, row.site, row.condition, row.scene, row.draw, row.step)
                assert key not in found, key
                found[key] = (row.value, row.n, row.seed, row.plan)
    return found


def timed(trial):
    """How many steps the session that ended a trial has timed."""
    return max(row.n for row in read_rows(trial / "rows.jsonl") if row.metric == "step_ms")


def begin(tmp_path, runs, uri, quick_python):
    (tmp_path / "program.py").write_text(PROGRAM)
    python, folder = quick_python["QUICK_PYTHON"], tmp_path
    words = [python, str(folder / "program.py"), str(folder / "recipe"), str(runs), uri]
    with (tmp_path / "log").open("a") as log:
        return subprocess.Popen(words, env=os.environ | quick_python, stdout=log, stderr=log, cwd=ROOT)


def kill(process, parent):
    """As a power cut: driver, Ray and workers at once; all of them descend from one process."""
    family = offspring(parent)
    assert family
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    while offspring(parent):
        time.sleep(0.02)


@pytest.mark.cluster
@pytest.mark.slow(seconds=50)
def test_killed_its_folder_lost_and_gone_on_with_from_the_bucket(s3, recipe, tmp_path, quick_python):
    unbroken = StudyFolder(tmp_path / "unbroken")
    unbroken.claim(recipe, {})
    for name, settings in recipe.named_trials().items():
        run_trial(settings, LocalSession(unbroken.trial(name)))
    (tmp_path / "recipe").write_bytes(pickle.dumps(recipe))
    first, second = in_running_order(recipe, list(recipe.named_trials()))
    copy = f"studies/{recipe.name}/trials"

    process = begin(tmp_path, tmp_path / "runs", s3.uri, quick_python)
    deadline = time.monotonic() + PATIENCE_S
    wanted = re.compile(rf"{copy}/{second}/checkpoints/step_0000000[468]/state.json")
    while not any(map(wanted.fullmatch, s3.objects())):
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    kill(process, int(quick_python["QUICK_PARENT"]))
    before = s3.objects()
    assert json.loads(before[f"{copy}/{first}/status.json"])["state"] == TrialState.COMPLETE
    assert not [key for key in before if "step_00000012" in key and second in key], "killed too late"
    shutil.rmtree(tmp_path / "runs")

    process = begin(tmp_path, tmp_path / "elsewhere", s3.uri, quick_python)
    assert process.wait(timeout=PATIENCE_S) == 0, (tmp_path / "log").read_text()
    after, log = s3.objects(), (tmp_path / "log").read_text()
    folder = StudyFolder(tmp_path / "elsewhere" / recipe.name)
    assert folder.is_complete(first)
    assert folder.is_complete(second)
    assert numbers(folder) == numbers(unbroken)
    # the done trial was left alone, the other was gone on with: its first rows are those from before
    assert after[f"{copy}/{first}/rows.jsonl"] == before[f"{copy}/{first}/rows.jsonl"]
    then, now = (json.loads(copies[f"{copy}/{first}/status.json"]) for copies in (before, after))
    assert {**then, "mlflow_run_id": ""} == {**now, "mlflow_run_id": ""}
    rows = before[f"{copy}/{second}/rows.jsonl"]
    assert after[f"{copy}/{second}/rows.jsonl"].startswith(rows[: rows.rfind(b"\n") + 1])
    killed, resumed = read_status(folder.trial(second)).sessions
    assert killed.start < killed.end <= resumed.start < resumed.end
    steps, all_steps = (timed(study.trial(second)) for study in (folder, unbroken))
    assert steps < all_steps, "steps before the checkpoint were not taken again"
    # the copy is whole, and nobody holds it
    for name in (first, second):
        assert after[f"{copy}/{name}/rows.jsonl"] == (folder.trial(name) / "rows.jsonl").read_bytes()
        assert after[f"{copy}/{name}/status.json"] == (folder.trial(name) / "status.json").read_bytes()
        assert is_unchanged(folder.trial(name) / "rows.jsonl", read_status(folder.trial(name)).rows)
    assert not [key for key in after if ".leases" in key]
    assert f"studies/{recipe.name}/report.html" in after
    assert "taken over from process" in log
    # the secret is nowhere
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"].encode()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if secret in path.read_bytes()]
    assert not [key for key, content in after.items() if secret in content]


@pytest.mark.cluster
@pytest.mark.slow(seconds=30)
def test_every_trial_of_a_cohort_is_copied(s3, recipe, tmp_path, quick_python):
    (tmp_path / "recipe").write_bytes(pickle.dumps(replace(recipe, arms_per_worker=2)))
    process = begin(tmp_path, tmp_path / "runs", s3.uri, quick_python)
    assert process.wait(timeout=PATIENCE_S) == 0, (tmp_path / "log").read_text()
    folder, copies = StudyFolder(tmp_path / "runs" / recipe.name), s3.objects()
    names = list(recipe.named_trials())
    assert len({starts_of(folder.trial(name))[0].pid for name in names}) == 1, "it was no cohort"
    for name in names:
        assert folder.is_complete(name)
        for file in ("rows.jsonl", "status.json", "weights.safetensors"):
            copy = copies[f"studies/{recipe.name}/trials/{name}/{file}"]
            assert copy == (folder.trial(name) / file).read_bytes()


def test_a_study_remembers_its_uri_and_others_can_look_at_it(s3, tmp_path, capsys):
    chosen, (first, _) = smoke(), smoke().named_trials()
    folder = StudyFolder(tmp_path / "runs" / chosen.name)
    with stored_study(s3.uri, folder, Console(file=io.StringIO())):
        folder.claim(chosen, {})
        folder.finish(first, "it broke")
    assert (folder.path / STORAGE_FILE).read_text() == f"{s3.uri}/smoke\n"
    with stored_study("", folder, Console(file=io.StringIO())) as study_sync:
        assert study_sync.uri == f"{s3.uri}/smoke"
    looker = ["--runs-dir", str(tmp_path / "laptop"), "--storage", s3.uri]
    assert main(["study", "status", "smoke", *looker]) == 1
    assert "failed: it broke" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "laptop/smoke/study.json").exists()
    assert main(["study", "sync", *looker]) == 2
    assert "name the studies" in capsys.readouterr().err


def test_a_second_driver_is_refused_in_a_sentence(s3, tmp_path, capsys):
    folder = StudyFolder(tmp_path / "runs" / "smoke")
    words = ["study", "run", "smoke", "--runs-dir", str(tmp_path / "other"), "--storage", s3.uri]
    with stored_study(s3.uri, folder, Console(file=io.StringIO())):
        assert main(words) == 2
    assert f"process {os.getpid()} on " in capsys.readouterr().err


def test_a_password_in_the_uri_is_refused_and_not_shown(tmp_path, capsys):
    words = [
        "study",
        "run",
        "smoke",
        "--runs-dir",
        str(tmp_path),
        "--storage",
        "s3://me:hunter22222@bucket/x",
    ]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "holds a password in a URI" in said.err
    assert "hunter22222" not in said.out + said.err
    assert not list(tmp_path.rglob("*"))
