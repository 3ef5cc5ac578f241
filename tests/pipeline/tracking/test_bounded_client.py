"""Stores that do not answer: given up in time, with one sentence, and no process waits for them."""

import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from pipeline.tracking.bounded_client import BoundedClient, NoAnswerError
from pipeline.tracking.mlflow_store import ANSWER_S, prepare_store
from tests.machine import unused_port

pytestmark = pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::sqlalchemy", "ignore:::alembic")

MARGIN_S = 8.0
"""For threads that wait for a core."""


@contextmanager
def listener(serve):
    """A port on 127.0.0.1 at which ``serve`` talks to everybody who connects; yields its number."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def accept():
            while True:
                try:
                    line, _ = server.accept()
                except OSError:  # closed
                    return
                threading.Thread(target=serve, args=(line,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]


def byte_by_byte(line):
    """Answer correctly, and for ever."""
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n" + b" " * 10**5
    )
    try:
        for byte in answer:
            line.send(bytes([byte]))
            time.sleep(0.5)
    except OSError:
        pass


def in_silence(line):
    """Take the connection, and say nothing."""
    time.sleep(3600)


PROGRAM = """
import sys, time
from pipeline.tracking.mlflow_store import prepare_store

begun = time.monotonic()
print(prepare_store(sys.argv[1]))
print(time.monotonic() - begun)
"""


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("scheme", ["http", "postgresql"])
@pytest.mark.parametrize("serve", [byte_by_byte, in_silence])
def test_a_store_that_hangs_is_given_up_in_time_and_holds_no_process(scheme, serve):
    with listener(serve) as port:
        words = [sys.executable, "-c", PROGRAM, f"{scheme}://me@127.0.0.1:{port}/x"]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    sentence, seconds = ended.stdout.splitlines()
    assert sentence.startswith(f"MLflow at {scheme}://")
    assert sentence.endswith("and `biaswise study sync` sends them later")
    assert float(seconds) < ANSWER_S + MARGIN_S
    assert ended.stderr == ""


def test_a_database_server_that_is_not_there_is_told_at_once():
    begun = time.monotonic()
    warning = prepare_store(f"postgresql://me:planted@127.0.0.1:{unused_port()}/x")
    assert "Connection refused" in warning
    assert "planted" not in warning
    assert time.monotonic() - begun < MARGIN_S


class Slow:
    """A client one of whose calls takes long."""

    size = 3

    def hang(self):
        time.sleep(3600)

    def add(self, one, two):
        return one + two

    def fail(self):
        raise KeyError("no such run")


def test_a_call_that_hangs_ends_and_the_next_ones_fail_at_once():
    client = BoundedClient(Slow, 0.2)
    assert (client.size, client.add(1, two=2)) == (3, 3)
    with pytest.raises(KeyError, match="no such run"):
        client.fail()
    for _ in range(2):
        begun = time.monotonic()
        with pytest.raises(NoAnswerError, match="no answer within 0 s"):
            client.hang()
    assert time.monotonic() - begun < 0.1
    client.close()


def test_the_upload_of_a_large_file_gets_more_time(tmp_path):
    class Upload:
        def log_artifact(self, run_id, path, place):
            time.sleep(0.4)
            uploaded.append((run_id, path, place))

    uploaded, file = [], tmp_path / "weights"
    client = BoundedClient(Upload, 0.1)
    file.write_bytes(bytes(10**6))
    client.log_artifact("run", str(file), "model")
    assert uploaded == [("run", str(file), "model")]
    file.write_bytes(b"")
    with pytest.raises(NoAnswerError):
        client.log_artifact("run", str(file), "model")
    client.close()
