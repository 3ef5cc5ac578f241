"""How fast a trial trains and detects while others like it do so beside it; what the probe measures.

Each trial is a process of its own, as in a study, and does what a trial does, but keeps nothing.
"""

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from pipeline.config.early_stopping import EarlyStopping
from pipeline.config.settings import TrialSettings
from pipeline.data.sample import Sample
from pipeline.evaluation.inference import BATCH
from pipeline.runtime.determinism import deterministic
from pipeline.runtime.session import LocalSession
from pipeline.training.preflight import check
from pipeline.training.trial import Trial

WARMUP = 3
"""Steps before the first is timed: the allocator and autotuners settle within two."""

TRAINING_SHARE = 0.6
"""Part of the measuring time that goes to training steps; the rest goes to detecting."""

ENDLESS = 10**6
"""More steps than any probe takes."""


@dataclass(frozen=True)
class TrialSpeed:
    """What one of several equal trials saw.

    Attributes:
        step_s: seconds per training step, waiting for data included.
        chunk_s: seconds per ``BATCH`` frames of evaluation, under all conditions, reading included.
        chunks: how many such chunks an evaluation has.
        reserved_gib: most CUDA memory its allocator held; 0 on a CPU.
        device_gib: memory in use on the whole device at the end, whoever uses it; 0 on a CPU.
        resident_gib: most memory of its process.
    """

    step_s: float
    chunk_s: float
    chunks: int
    reserved_gib: float
    device_gib: float
    resident_gib: float


class TrialSpeedProbe:
    """A trial that is ready to run for as long as it is told.

    Args:
        settings: of one worker.
        folder: where the trial thinks its rows go.
    """

    def __init__(self, settings: TrialSettings, folder: Path) -> None:
        session = LocalSession(folder, settings.device)
        check(settings, folder, session.device)
        deterministic(session.device, settings.torch_threads)
        self._trial = Trial(settings, session, EarlyStopping())
        self._batches = enumerate(self._trial.batches(0, ENDLESS))
        self._views = self._trial.evaluator.views
        self._chunks = self._endless_chunks()
        for _ in range(WARMUP):
            self._step()
        self._detect()

    def run(self, threads: int, seconds: float) -> TrialSpeed:
        """Train and detect for a while.

        Args:
            threads: torch threads on a CPU.
            seconds: how long, roughly: what is begun is finished.
        """
        if self._trial.session.device.type == "cpu":
            torch.set_num_threads(threads)
        step_s = self._time(self._step, TRAINING_SHARE * seconds)
        chunk_s = self._time(self._detect, (1 - TRAINING_SHARE) * seconds)
        chunks = -(-len(self._views.source) // BATCH)
        return TrialSpeed(step_s, chunk_s, chunks, *_memory(self._trial.session.device))

    def _time(self, call: Any, seconds: float) -> float:
        """Return seconds per call."""
        begun, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - begun < seconds:
            call()
            calls += 1
        return (time.perf_counter() - begun) / calls

    def _step(self) -> None:
        self._trial.step(*next(self._batches))  # reads its losses, and so waits for the device

    def _detect(self) -> None:
        detector = self._trial.detector
        detector.compare(detector.resize(self._views.of(next(self._chunks))))

    def _endless_chunks(self) -> Iterator[list[Sample]]:
        while True:
            yield from self._views.chunks(0, 1)


def _memory(device: torch.device) -> tuple[float, float, float]:
    """Return reserved and used GiB of the device, and resident GiB of this process."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB, on macOS in bytes
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    if device.type != "cuda":
        return 0.0, 0.0, resident
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.max_memory_reserved(device)
    return reserved / 2**30, (total - free) / 2**30, resident


def serve(settings: TrialSettings, folder: Path, pipe: Connection) -> None:
    """Be one of the probe's processes: say when ready, run whenever told how.

    Sends True when it is ready, then a ``TrialSpeed`` for each (threads, seconds) it receives; or,
    as its last word, the sentence that says why it cannot.
    """
    try:
        pacer = TrialSpeedProbe(settings, folder)
        pipe.send(True)
        while (order := pipe.recv()) is not None:
            pipe.send(pacer.run(*order))
    except EOFError:  # the probe is gone
        return
    except (ValueError, RuntimeError) as error:  # a refusal, or out of memory
        pipe.send(f"{type(error).__name__}: {error}")
