"""A loader process whose trainer was killed ends, although it waits for room."""

import os
import signal
import subprocess
import sys
import time

import psutil

TRAINER = """
import multiprocessing, sys
from pipeline.data.loading.prefetch import PrefetchBudget

if __name__ == "__main__":
    budget = PrefetchBudget(1, limit=10)
    budget._made[0] = 10
    worker = multiprocessing.get_context("fork").Process(target=budget.wait_and_add, args=(0, 5, 5))
    worker.start()
    print(worker.pid, flush=True)
    worker.join()
"""


def test_a_loader_process_ends_with_its_trainer() -> None:
    words = [sys.executable, "-c", TRAINER]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        worker = psutil.Process(int(trainer.stdout.readline()))
        time.sleep(0.5)
        assert worker.is_running()  # it waits
        os.kill(trainer.pid, signal.SIGKILL)
    gone, _ = psutil.wait_procs([worker], timeout=30)
    assert gone or worker.status() == psutil.STATUS_ZOMBIE
