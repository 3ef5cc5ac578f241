"""Files appear whole or not at all; of two writers or lock holders one waits, and gets its turn."""

import json
import multiprocessing
import os
import signal

import pytest

from pipeline.errors import TrialError
from pipeline.storage.files import atomic_file, atomic_path, atomic_write, exclusive_writer, file_lock


def hold(folder, pipe):
    with exclusive_writer(folder):
        pipe.send("held")
        pipe.recv()


def test_a_writer_that_was_killed_leaves_its_place(tmp_path):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    first = context.Process(target=hold, args=(tmp_path / "trial", theirs), daemon=True)
    first.start()
    assert ours.recv() == "held"
    with (
        pytest.raises(TrialError, match="another process has been running this trial for 0 s; end it"),
        exclusive_writer(tmp_path / "trial", timeout_s=0.0),
    ):
        pass
    os.kill(first.pid, signal.SIGKILL)
    with exclusive_writer(tmp_path / "trial", timeout_s=10.0):
        pass
    first.join()


@pytest.mark.parametrize("fsync", [False, True])
def test_a_file_is_replaced_in_one_step(tmp_path, fsync):
    path = tmp_path / "a.json"
    for content in ("text", b"bytes", {"a": [1, 2]}):
        atomic_write(path, content, fsync)
        read = path.read_bytes()
        expected = content.encode() if isinstance(content, str) else content
        assert (json.loads(read) if isinstance(content, dict) else read) == expected
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("opened", [atomic_file, atomic_path])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, opened):
    path = tmp_path / "a.json"
    path.write_text("old")

    def interrupted():
        with opened(path) as file:
            _ = file.write(b"new") if opened is atomic_file else file.write_bytes(b"new")
            assert path.read_text() == "old"
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        interrupted()
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_lock_that_is_held_is_waited_for_as_long_as_asked(tmp_path):
    lock = tmp_path / "new" / "lock"
    with file_lock(lock):
        for timeout_s in (0.0, 0.3):
            with pytest.raises(BlockingIOError), file_lock(lock, timeout_s):
                pass
    with file_lock(lock, 0.0):
        pass
