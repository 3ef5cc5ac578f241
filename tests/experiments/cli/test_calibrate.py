"""A calibration that is interrupted ends at once."""

import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from experiments.cli.calibrate import _killed_if_interrupted


def test_an_interrupt_waits_for_no_simulation() -> None:
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _interrupted()
    assert time.monotonic() - begun < 30


def _interrupted() -> None:
    with ProcessPoolExecutor(1) as pool, _killed_if_interrupted(pool):
        for _ in range(3):
            pool.submit(time.sleep, 60)
        raise KeyboardInterrupt
