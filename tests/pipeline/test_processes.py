"""Processes that a command starts end with it, at once and without a word."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.processes import process_pool

COMMAND = [sys.executable, "-m", "experiments.cli", "data", "synth", "--processes", "2"]
LONG_S = 600.0
"""A task that nobody waits for."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_dataset_that_is_interrupted_ends_in_seconds(number, tmp_path):
    """Ctrl-C reaches all processes of a terminal, `kill` one. The dataset would take minutes."""
    words = [
        *COMMAND,
        "--out",
        str(tmp_path / "big"),
        "--scenes",
        "mini_train=8,mini_val=2",
        "--frames",
        "400",
    ]
    process = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not [*(tmp_path / "big").rglob("*.jpg")]:  # the processes are at work
        assert process.poll() is None
        time.sleep(0.1)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    (line,) = said.splitlines()
    assert line.startswith("biaswise: interrupted; ")


def test_a_pool_does_not_wait_for_tasks_if_an_exception_leaves_it():
    before = {*multiprocessing.active_children()}
    running = []

    def leave():
        with process_pool(2) as pool:
            running.extend(pool.submit(time.sleep, LONG_S) for _ in range(4))
            while not running[0].running():
                time.sleep(0.05)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave()
    assert {*multiprocessing.active_children()} <= before
    assert all(one.done() for one in running)
