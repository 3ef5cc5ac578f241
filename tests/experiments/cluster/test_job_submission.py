"""Jobs: uploads, refusals, exit codes, and a study that is stopped in the middle and goes on."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import ray
from ray.job_submission import JobStatus

from experiments.cli import main
from experiments.cluster import job_submission
from experiments.cluster.job_submission import Job, SubmitError, follow, runtime_env, send, upload
from experiments.recipes.mini import smoke
from experiments.recipes.registry import recipe
from experiments.storage.study_folder import StudyFolder
from pipeline.errors import PACKAGES
from pipeline.metrics.rows import read_rows
from pipeline.storage.checkpoint import newest_checkpoint
from pipeline.storage.paths import ROOT

PATIENCE_S = 300
MAX_UPLOAD_BYTES = 20_000_000
"""A few seconds on a slow line. Ray's job server takes 100 MiB."""
BIASWISE = Path(sys.executable).parent / "biaswise"
CONTROL = re.compile(r"\x1b|\r(?!\n)")  # escape sequences, and returns that would write over a line


class JobServer(ThreadingHTTPServer):
    """A job server on 127.0.0.1 that takes everything and runs nothing.

    Attributes:
        uploads: archives of working directories.
        jobs: requests for a job.
        refusals: answers with status 500 that come before the first success, by method.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.uploads: list[bytes] = []
        self.jobs: list[dict] = []
        self.refusals: dict[str, list[str]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: JobServer

    def do_GET(self) -> None:
        if self.path.startswith("/api/packages"):
            self.answer(404, {})
        else:
            self.answer(200, {"version": "4", "ray_version": ray.__version__})

    def do_PUT(self) -> None:
        self.take(self.server.uploads, self.body())

    def do_POST(self) -> None:
        self.take(self.server.jobs, json.loads(self.body()))

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def take(self, where: list, what: object) -> None:
        if refusals := self.server.refusals.get(self.command):
            self.answer(500, refusals.pop(0))
        else:
            where.append(what)
            self.answer(200, {"job_id": "raysubmit_1", "submission_id": "raysubmit_1"})

    def answer(self, code: int, body: dict | str) -> None:
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def job_server() -> Iterator[JobServer]:
    with JobServer() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def small(tmp_path) -> dict:
    """A runtime environment with a working directory of one file."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small/code.py").write_text("pass")
    return {**runtime_env("/shared/biaswise"), "working_dir": str(tmp_path / "small")}


def submit(server: JobServer, env: dict) -> Job:
    return send(["study", "list"], server.address, env)


def test_the_upload_holds_the_code_and_is_small(job_server, caplog):
    submit(job_server, runtime_env())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    (upload,) = job_server.uploads
    assert len(upload) < MAX_UPLOAD_BYTES
    with zipfile.ZipFile(io.BytesIO(upload)) as file:
        names = {name for name in file.namelist() if not name.endswith("/")}
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "pipeline").rglob("*.py")}
    assert code <= names
    assert {smoke().trials[0].config, "experiments/checkpoints/cmt_aqr_pillar_mini.safetensors"} <= names
    assert {"experiments/reporting/report.html.j2", "experiments/runtime_env.yaml", "pyproject.toml"} <= names
    unwanted = re.compile(
        r"\.git$|\.[^/]+/|(data|runs|docs|tests|mlruns|mlartifacts)/|mlflow\.db|.*\.egg-info/"
    )
    assert not [name for name in names if unwanted.match(name)]


STUDY = """
from dataclasses import replace

import beside
from experiments.recipes.registry import recipe as shipped

mine = shipped("smoke").renamed(beside.NAME)
recipe = replace(mine, trials=tuple(replace(s, config="configs/mine.py") for s in mine.trials))
"""


def test_a_study_file_goes_with_the_job_and_so_does_what_it_reads(job_server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/mine.py").write_text("_base_ = ['./base.py']\n")
    (tmp_path / "configs/base.py").write_text(f"_base_ = ['{ROOT / smoke().trials[0].config}']\n")
    (tmp_path / "my_study.py").write_text(STUDY)
    (tmp_path / "beside.py").write_text("NAME = 'mine'\n")
    (tmp_path / "large.bin").write_bytes(b"0")
    far = r"its config reads .*cmt_aqr_pillar_mini\.py, which is not below"
    with pytest.raises(SubmitError, match=far), upload(recipe("my_study.py")):
        pass
    (tmp_path / "configs/base.py").write_text("")
    words = ["study", "submit", "my_study.py", "--set", "train.steps=4", "--address", job_server.address]
    assert main([*words, "--no-wait", "--home", "/shared"]) == 0
    with zipfile.ZipFile(io.BytesIO(job_server.uploads[0])) as file:
        names = {name for name in file.namelist() if not name.endswith("/")}
    assert {"my_study.py", "beside.py", "configs/mine.py", "configs/base.py"} <= names
    assert {smoke().trials[0].config, "pipeline/storage/paths.py", "experiments/runtime_env.yaml"} <= names
    assert not [name for name in names if "__pycache__" in name or "large" in name or "tests" in name]
    (job,) = job_server.jobs
    assert job["entrypoint"] == "exec biaswise study run my_study.py --set train.steps=4"
    assert job["runtime_env"]["env_vars"]["BIASWISE_HOME"] == "/shared"


def test_the_config_that_the_command_line_names_goes_with_the_job(job_server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/other.py").write_text("")
    (tmp_path / "my_study.py").write_text(
        "from experiments.recipes.mini import smoke\n\nrecipe = smoke().renamed('mine')\n"
    )
    words = ["study", "submit", "my_study.py", "--address", job_server.address, "--no-wait", "--set"]
    assert main([*words, "config=configs/other.py"]) == 0
    with zipfile.ZipFile(io.BytesIO(job_server.uploads[0])) as file:
        assert "configs/other.py" in file.namelist()
    for name, why in (
        ("gone.py", "No such file"),
        ("gone.yaml", "No such file"),
        ("bad.py", "bad.py, line 1"),
    ):
        (tmp_path / "configs/bad.py").write_text("model = (")
        assert main([*words, f"config=configs/{name}"]) == 2
        said = capsys.readouterr().err
        assert f"my_study.py: its config configs/{name} cannot be read (" in said
        assert why in said
        assert "Traceback" not in said
    assert len(job_server.jobs) == 1


def test_a_config_of_the_checkout_that_is_in_no_package_goes_with_the_job(tmp_path, monkeypatch):
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.py").write_text("")
    (tmp_path / "mine/my_study.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job_submission, "ROOT", tmp_path)
    monkeypatch.setattr("pipeline.storage.paths.ROOT", tmp_path)
    trials = tuple(replace(settings, config="mine/config.py") for settings in smoke().trials)
    with upload(replace(smoke(), trials=trials, file="mine/my_study.py")) as made:
        assert (Path(made["working_dir"]) / "mine/config.py").is_file()


def test_a_job_stops_in_a_way_that_lets_a_study_end(job_server, small):
    submit(job_server, small)
    (job,) = job_server.jobs
    assert job["entrypoint"] == "exec biaswise study list"
    variables = job["runtime_env"]["env_vars"]
    assert variables["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30
    assert variables["BIASWISE_HOME"] == "/shared/biaswise"
    assert "BIASWISE_HOME" not in runtime_env()["env_vars"]


def test_ray_names_a_large_file_before_it_is_sent(job_server, small, caplog):
    (Path(small["working_dir"]) / "weights.bin").write_bytes(os.urandom(MAX_UPLOAD_BYTES))
    with caplog.at_level(logging.WARNING):
        submit(job_server, small)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert re.search(
        r"weights\.bin is very large \(19\.07MiB\)\. Consider adding this file to the 'excludes'", warning
    )


def test_too_much_to_upload_is_refused_by_the_server_and_the_refusal_says_what_to_do(job_server, small):
    job_server.refusals["PUT"] = ["Maximum request body size 104857600 exceeded."]  # as Ray 2.60 says it
    with pytest.raises(SubmitError, match=r"larger than 100 MiB; move large files out of .* `excludes` in "):
        submit(job_server, small)
    assert job_server.jobs == []


def test_other_refusals_are_the_servers_last_line(job_server, small):
    job_server.refusals["POST"] = ["Traceback (most recent call last):\n  ...\nValueError: no such thing"]
    with pytest.raises(SubmitError, match=r"^job server http://\S+: ValueError: no such thing"):
        submit(job_server, small)


def test_a_head_that_answers_before_it_can_run_jobs_is_asked_again(job_server, small, monkeypatch):
    monkeypatch.setattr(job_submission, "POLL_S", 0.01)
    job_server.refusals["POST"] = ["No available agent to submit job, please try again later."] * 2
    assert submit(job_server, small).name == "raysubmit_1"
    assert len(job_server.jobs) == 1
    monkeypatch.setattr(job_submission, "START_UP_S", 0.05)
    job_server.refusals["POST"] = ["No available agent to submit job, please try again later."] * 99
    with pytest.raises(SubmitError, match="its head runs no jobs"):
        submit(job_server, small)


class Client:
    """A job's client: its log, and what the server says of it, answer by answer; the last one stays."""

    def __init__(self, *answers, broken=False):
        self.answers, self.broken = list(answers), broken

    async def tail_job_logs(self, name):
        yield "one\n"
        if self.broken:
            raise RuntimeError("WebSocket connection closed unexpectedly")
        yield "two\n"

    def get_job_info(self, name):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def details(status, code=None):
    return SimpleNamespace(status=status, driver_exit_code=code, message="its machine died")


@pytest.mark.parametrize(
    ("answer", "code", "shown"),
    [
        (details(JobStatus.SUCCEEDED, 0), 0, "one\ntwo\n"),
        (details(JobStatus.STOPPED, None), 130, "one\ntwo\n"),
        (details(JobStatus.FAILED, 2), 1, "one\ntwo\n"),
        (details(JobStatus.FAILED), 1, "one\ntwo\nits machine died\n"),
    ],
)
def test_the_exit_code_is_that_of_the_jobs_status(monkeypatch, answer, code, shown):
    monkeypatch.setattr(job_submission, "POLL_S", 0.0)
    log = []
    assert follow(Job(Client(details(JobStatus.RUNNING), answer), "raysubmit_1"), log.append) == code
    assert "".join(log) == shown


def test_a_connection_that_breaks_says_that_the_job_goes_on():
    with pytest.raises(
        SubmitError, match=r"raysubmit_1 broke; the job goes on, `ray job logs -f raysubmit_1`"
    ):
        follow(Job(Client(details(JobStatus.RUNNING), broken=True), "raysubmit_1"), lambda text: None)


def test_nobody_answers(small):
    with pytest.raises(
        SubmitError, match=r"job server http://127\.0\.0\.1:1: nothing answers; `ray start --head`"
    ):
        send(["study", "list"], "http://127.0.0.1:1", small)


def biaswise(head, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [BIASWISE, *words, "--address", head.address],
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.cluster
@pytest.mark.slow(seconds=120)
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
    assert not all(folder.is_complete(name) for name in smoke().named_trials())

    second = biaswise(head, "study", "submit", "smoke", "--no-mlflow")
    again = second.communicate()[0]
    assert second.returncode == 0, again
    assert all(folder.is_complete(name) for name in smoke().named_trials())
    assert (state / "state.json").stat().st_ino == inode, "the checkpoint was gone on from, not written again"
    rows = read_rows(trial / "rows.jsonl")
    keys = [(row.metric, row.site, row.kernel, row.condition, row.scene, row.draw, row.step) for row in rows]
    assert len(set(keys)) == len(keys)
    assert all(row.commit for row in rows), "the package has no history; the submitter tells the commit"
    for log in (said, again):
        assert not CONTROL.search(log)
    assert re.search(r"^\d\d:\d\d  \w+ done in \d+ s", again, re.MULTILINE), "one plain line an event"
    written = [path for path in home.rglob("*") if path.is_file()]
    planted = (secret.encode(), head.environment["RAY_AUTH_TOKEN"].encode())
    assert not [path for path in written for word in planted if word in path.read_bytes()]
    assert not [word for word in planted if word.decode() in said + again]
