"""MLflow's real server, killed under load and started again; its database has every point once.

On SQLite, and on PostgreSQL where Debian's package is installed (`apt-get install postgresql`).
"""

import http.server
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.metrics.rows import Row, append_rows, read_study
from pipeline.tracking.mlflow_sync import sync
from pipeline.tracking.naming import metric_key
from pipeline.tracking.study_reader import stored_trials
from pipeline.tracking.study_sender import CURSOR
from tests.machine import unused_port
from tests.statuses import write_status

pytestmark = [
    pytest.mark.slow(seconds=20),
    pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::sqlalchemy", "ignore:::alembic"),
]

PASSWORD = "planted-0b5d9f31"
NEED_POSTGRES = "no PostgreSQL here; on Debian `apt-get install postgresql` brings it"
PATIENCE_S = 300
"""A server starts in 4 s, on a machine that does much else in a minute."""


def postgres_binaries():
    on_path = shutil.which("initdb")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "postgres").exists()), None)


@contextmanager
def postgres():
    """A PostgreSQL of its own on 127.0.0.1; yields the URI of an empty database."""
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip(NEED_POSTGRES)
    folder = Path(tempfile.mkdtemp(prefix="biaswise-pg-"))
    runs_as = []
    if os.geteuid() == 0:  # initdb refuses root
        runs_as = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        shutil.chown(folder, "nobody", "nogroup")
    port, secret = unused_port(), folder / "secret"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    words = [
        *runs_as,
        str(binaries / "initdb"),
        "-D",
        str(folder / "db"),
        "-U",
        "biaswise",
        "-A",
        "scram-sha-256",
    ]
    subprocess.run([*words, f"--pwfile={secret}", "--no-sync"], check=True, capture_output=True, cwd=folder)
    words = [
        *runs_as,
        str(binaries / "postgres"),
        "-D",
        str(folder / "db"),
        "-p",
        str(port),
        "-k",
        str(folder),
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*words, "-h", "127.0.0.1", "-N", "150"], stdout=log, stderr=log, cwd=folder
        )
    uri = f"postgresql://biaswise:{PASSWORD}@127.0.0.1:{port}/postgres"
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(Exception):
                query(uri, "SELECT 1")
                break
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield uri
    finally:
        server.send_signal(signal.SIGINT)  # "fast shutdown"
        server.wait(60)
        shutil.rmtree(folder)


def query(uri, text):
    """Ask the database itself, past MLflow."""
    if uri.startswith("sqlite"):
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"), timeout=60)) as connection:
            return connection.execute(text).fetchall()
    import psycopg

    with psycopg.connect(uri) as connection:
        return connection.execute(text).fetchall()


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/mlflow.db"
    else:
        with postgres() as uri:
            yield uri


QUICK = """
import os, runpy, sys

sys.executable = os.environ["QUICK_PYTHON"]  # of the server's workers
runpy.run_module("mlflow", run_name="__main__")
"""


class Server:
    """MLflow's server as `biaswise ui` starts it; may be killed and started again on its port."""

    def __init__(self, store, folder, python):
        self.port, self._store, self._folder, self._python = unused_port(), store, folder, python
        self.address = f"http://127.0.0.1:{self.port}"
        self._process = None

    def start(self):
        program = self._folder / "server.py"
        program.write_text(QUICK)
        words = [self._python["QUICK_PYTHON"], str(program), "server", "--host", "127.0.0.1"]
        words += ["--port", str(self.port), "--workers", "1"]
        words += ["--artifacts-destination", str(self._folder / "artifacts")]
        given = {
            **os.environ,
            **self._python,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_BACKEND_STORE_URI": self._store,
        }
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                words, env=given, stdout=log, stderr=log, start_new_session=True, cwd=self._folder
            )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"{self.address}/health", timeout=5).read()
                return
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def kill(self):
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # whose other processes end at once, as of one group
            self._process.wait()
            self._process = None
            deadline = time.monotonic() + PATIENCE_S
            while answers(self.port):
                assert time.monotonic() < deadline
                time.sleep(0.01)


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def server(store, tmp_path, quick_python):
    made = Server(store, tmp_path, quick_python)
    made.start()
    yield made
    made.kill()


def make_study(folder, trials, rows):
    """A study with so many trials of so many rows, all done."""
    for number in range(trials):
        base = Row(
            folder.name, f"t{number:02d}", "decoder.0.cross=window/sdpa_math", "", "", 0.0, seed=number
        )
        place = folder / "trials" / base.trial
        append_rows(place / "rows.jsonl", [measured(base, step) for step in range(rows)])
        (place / "settings.json").write_text('{"seed": 0}')
        write_status(place)
    (folder / "study.json").write_text("{}")
    return folder


def measured(base, step):
    metric = ("loss", "mAP", "NDS")[step % 3]
    fields = {**vars(base), "metric": metric, "unit": "", "value": random.random(), "step": step}
    return Row(**{**fields, "time": 1000.0 + base.seed + step / 7})


def assert_each_once(store, *studies):
    """Points, runs and tags in the database are those of the rows: none lost, none double."""
    found = query(
        store,
        "SELECT t.value, m.key, m.step, m.timestamp, m.value FROM metrics m "
        "JOIN tags t ON t.run_uuid = m.run_uuid JOIN runs r ON r.run_uuid = m.run_uuid "
        "WHERE t.key = 'biaswise.trial' AND r.lifecycle_stage = 'active'",
    )
    rows = [row for study in studies for row in read_study(study)]
    wanted = Counter((r.trial, metric_key(r), r.step, round(r.time * 1000), r.value) for r in rows)
    assert Counter(found) == wanted
    kinds = query(
        store,
        "SELECT t.value FROM tags t JOIN runs r ON r.run_uuid = t.run_uuid "
        "WHERE t.key = 'biaswise.kind' AND r.lifecycle_stage = 'active'",
    )
    trials = sum(len(stored_trials(study)) for study in studies)
    assert Counter(kind for (kind,) in kinds) == {"trial": trials, "study": len(studies)}
    states = query(store, "SELECT status FROM runs WHERE lifecycle_stage = 'active'")
    assert {state for (state,) in states} == {"FINISHED"}


def test_killed_under_load_and_started_again(server, store, tmp_path, monkeypatch):
    """Three kills while rows are being sent; each `sync` afterwards goes on, the last one completes."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # as CLIENT_SETTINGS, but sooner
    study = make_study(tmp_path / "killed", trials=36, rows=250)
    rng, reports = random.Random(6), []
    for _ in range(3):
        seen = metrics_of(store)
        sender = threading.Thread(target=lambda: reports.append(sync(study, server.address)))
        sender.start()
        wait_for(lambda seen=seen: metrics_of(store) > seen + 300, sender)
        time.sleep(rng.random() / 2)
        server.kill()
        sender.join(PATIENCE_S)
        server.start()
    assert [bool(report.warning) for report in reports] == [True] * 3, "killed too late to show anything"
    assert all("biaswise study sync" in report.warning and report.unsent for report in reports)
    last = sync(study, server.address)
    assert (last.unsent, last.warning) == (0, "")
    assert sync(study, server.address).sent == 0
    assert_each_once(store, study)
    (study / CURSOR).unlink()
    assert sync(study, server.address).unsent == 0
    assert_each_once(store, study)


def metrics_of(store):
    return query(store, "SELECT count(*) FROM metrics")[0][0]


def wait_for(condition, thread):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert thread.is_alive(), "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Cut(http.server.BaseHTTPRequestHandler):
    """Passes requests on and, where told so, cuts the line when the server has done what it was asked."""

    target = ""
    cuts: ClassVar[dict[str, int]] = {}

    def do_GET(self):
        self.pass_on()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {k: v for k, v in self.headers.items() if k not in ("Host", "Content-Length")}
        wanted = urllib.request.Request(self.target + self.path, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(wanted) as answer:
                code, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            code, content = error.code, error.read()
        left = next((part for part, number in self.cuts.items() if part in self.path and number), "")
        if left:
            self.cuts[left] -= 1
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def test_a_line_cut_after_the_server_has_written_doubles_nothing(server, store, tmp_path):
    """The answers to three new runs and three batches are lost; what was made is found, not made again."""
    study = make_study(tmp_path / "cut", trials=4, rows=9)
    handler = type("Once", (Cut,), {"target": server.address, "cuts": {"runs/create": 3, "log-batch": 3}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as line:
        threading.Thread(target=line.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{line.server_port}"
        for _ in range(4):
            report = sync(study, address)
        line.shutdown()
    assert not any(handler.cuts.values())
    assert (report.unsent, report.warning) == (0, "")
    assert_each_once(store, study)


def test_two_who_send_the_same_study_at_once_double_nothing(server, store, tmp_path):
    study = make_study(tmp_path / "twice", trials=8, rows=30)
    reports = []
    senders = [threading.Thread(target=lambda: reports.append(sync(study, server.address))) for _ in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert [report.warning for report in reports] == [""] * 4
    assert_each_once(store, study)


SENDER = """
import sys, threading, time
from pathlib import Path
from pipeline.tracking.mlflow_sync import sync
from pipeline.tracking.study_sender import CURSOR

print("ready", flush=True)
sys.stdin.readline()
reports = {}
def send(folder):
    reports[folder] = sync(Path(folder), sys.argv[1])
threads = [threading.Thread(target=send, args=(folder,)) for folder in sys.argv[2:]]
for thread in threads: thread.start()
for thread in threads: thread.join()
print([report.warning for report in reports.values() if report.warning])
"""


def test_32_trials_that_log_at_once_on_postgres_lose_no_metric(tmp_path, quick_python):
    """Straight into an empty database, 32 studies of one trial from 4 processes, 1500 points each."""
    with postgres() as store:
        studies = [make_study(tmp_path / f"s{number:02d}", trials=1, rows=1500) for number in range(32)]
        for study in studies:  # assert_each_once tells trials apart by name
            (study / "trials/t00").rename(study / f"trials/{study.name}-t")
        program = tmp_path / "sender.py"
        program.write_text(SENDER)
        senders = [
            subprocess.Popen(
                [quick_python["QUICK_PYTHON"], str(program), store, *map(str, studies[first::4])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | quick_python,
            )
            for first in range(4)
        ]
        assert [sender.stdout.readline() for sender in senders] == ["ready\n"] * 4
        for sender in senders:
            sender.stdin.write("go\n")
            sender.stdin.flush()
        said = [sender.communicate(timeout=PATIENCE_S)[0].strip() for sender in senders]
        assert said == ["[]"] * 4
        assert metrics_of(store) == 32 * 1500
        assert PASSWORD not in "".join(said)


def test_32_trials_that_are_written_while_one_sends_lose_no_metric(tmp_path):
    """One study, as it runs: 32 writers append, one sender sends what is there, again and again."""
    with postgres() as store:
        study = make_study(tmp_path / "growing", trials=32, rows=3)
        over = threading.Event()

        def write(number):
            base = Row(
                study.name, f"t{number:02d}", "decoder.0.cross=window/sdpa_math", "", "", 0.0, seed=number
            )
            for start in range(3, 303, 10):
                rows = [measured(base, step) for step in range(start, start + 10)]
                append_rows(study / f"trials/{base.trial}/rows.jsonl", rows)
                time.sleep(0.05)

        writers = [threading.Thread(target=write, args=(number,)) for number in range(32)]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            assert sync(study, store).warning == ""
        over.set()
        assert sync(study, store).unsent == 0
        assert_each_once(store, study)
        assert metrics_of(store) == 32 * 303
