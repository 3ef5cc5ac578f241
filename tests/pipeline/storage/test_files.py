"""One writer a trial: a second waits, is refused, and gets its turn when the first is dead."""

import multiprocessing
import os
import signal

import pytest

from pipeline.errors import TrialError
from pipeline.storage.files import exclusive_writer


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
        exclusive_writer(tmp_path / "trial", patience_s=0.0),
    ):
        pass
    os.kill(first.pid, signal.SIGKILL)
    with exclusive_writer(tmp_path / "trial", patience_s=10.0):
        pass
    first.join()
