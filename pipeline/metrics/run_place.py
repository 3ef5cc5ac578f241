"""When a trial starts, and which place of which machine runs it, as rows.

A machine may become slower, and one GPU may be slower than another. The analysis tells such differences from
the bias's own by these rows (``experiments.analysis.model.run_order``).
"""

import hashlib
import platform
import time

from pipeline.metrics.recorder import Measure

START_TIME, SLOT, HOST = "start_time", "slot", "host"
"""Metrics of these rows, one of each for every time a training starts or goes on."""
PLACE_UNIT = "label"
"""Unit of ``slot`` and ``host``: their numbers can be equal or not, and no arithmetic is meant."""


def start_and_place(slot: int) -> list[Measure]:
    """Return the measures of a training that starts now: Unix time in s, slot, and machine.

    Args:
        slot: of the ``Session``.
    """
    return [
        Measure(START_TIME, "s", time.time()),
        Measure(SLOT, PLACE_UNIT, float(slot)),
        Measure(HOST, PLACE_UNIT, float(label_number(platform.node()))),
    ]


def label_number(text: str) -> int:
    """Return a number of 32 bits that stands for a name; rows are passed on, and the name stays here."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
