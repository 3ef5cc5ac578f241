"""Measure how fast a worker trains and evaluates while equal workers run on the same machine.

Each worker is a process of its own, as in a study, and trains one trial or a cohort. It does the work of
trials but keeps no results.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from pipeline.config.settings import TrialSettings
from pipeline.data.sample import Sample
from pipeline.evaluation.inference import compare
from pipeline.evaluation.views import BATCH
from pipeline.metrics.memory import device_memory_gib, forget, peak_resident_gib
from pipeline.runtime.determinism import deterministic
from pipeline.runtime.session import LocalSession
from pipeline.training.cohort import Arm, Cohort
from pipeline.training.preflight import check

WARMUP = 3
"""Steps before the first timed step. The allocator and autotuners settle within two."""

TRAINING_SHARE = 0.6
"""Share of the measuring time that is spent on training steps. The rest is spent on evaluation."""

ENDLESS = 10**6
"""More steps than any probe takes."""


@dataclass(frozen=True)
class Build:
    """Ask a process for a cohort of so many trials; it answers True when the cohort is warm."""

    arms: int


@dataclass(frozen=True)
class Measure:
    """Ask a process to train and to evaluate; it answers with a ``TrialSpeed``.

    Attributes:
        threads: torch threads on a CPU.
        seconds: how long. A step that has begun when the time is over is finished.
    """

    threads: int
    seconds: float


@dataclass(frozen=True)
class TrialSpeed:
    """The measurements of one of several equal workers.

    Attributes:
        step_s: seconds per training step of all its trials, including the wait for data.
        chunk_s: seconds per chunk of ``BATCH`` frames of their evaluation, under all conditions, including
            reading.
        steps: training steps of the whole trial.
        chunks: chunks of a whole evaluation.
        reserved_gib: peak of the CUDA memory that the worker's allocator reserved; 0 on a CPU.
        device_gib: memory in use on the whole device at the end, by any process; 0 on a CPU.
        resident_gib: peak of the resident memory of the worker's process.
    """

    step_s: float
    chunk_s: float
    steps: int
    chunks: int
    reserved_gib: float
    device_gib: float
    resident_gib: float


class CohortProbe:
    """A cohort that is ready to train and to evaluate for a given time.

    Args:
        settings: of every trial, with one worker.
        folder: an empty folder for the files that trials write.
        arms: number of trials.
    """

    def __init__(self, settings: TrialSettings, folder: Path, arms: int) -> None:
        sessions = [LocalSession(folder / f"arm{index}", settings.device) for index in range(arms)]
        for session in sessions:
            check(settings, session.folder, session.device)
        self._device = sessions[0].device
        deterministic(self._device, settings.torch_threads, settings.train.steps)
        self._cohort = Cohort([Arm(settings, session) for session in sessions])
        self._batches = enumerate(self._cohort.batches(0, ENDLESS))
        self._views = self._cohort.split.views()
        self._chunks = self._endless_chunks()
        for _ in range(WARMUP):
            self._step()
        self._detect()

    def run(self, asked: Measure) -> TrialSpeed:
        """Train, then detect, for a given time."""
        if self._device.type == "cpu":
            torch.set_num_threads(asked.threads)
        step_s = self._time(self._step, TRAINING_SHARE * asked.seconds)
        chunk_s = self._time(self._detect, (1 - TRAINING_SHARE) * asked.seconds)
        chunks = -(-len(self._views.source) // BATCH)
        reserved, used = device_memory_gib(self._device)
        return TrialSpeed(step_s, chunk_s, self._cohort.steps, chunks, reserved, used, peak_resident_gib())

    def _time(self, call: Any, seconds: float) -> float:
        """Call ``call`` for the given time and return the mean seconds per call."""
        begun, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - begun < seconds:
            call()
            calls += 1
        return (time.perf_counter() - begun) / calls

    def _step(self) -> None:
        self._cohort.step(*next(self._batches))
        for trainer in self._cohort.trainers:
            trainer.read()  # waits for the device

    def _detect(self) -> None:
        detectors = [trainer.detector for trainer in self._cohort.trainers]
        compare(detectors, detectors[0].resize(self._views.of(next(self._chunks))))

    def _endless_chunks(self) -> Iterator[list[Sample]]:
        while True:
            yield from self._views.chunks(0, 1)


def serve(settings: TrialSettings, folder: Path, pipe: Connection) -> None:
    """Build and measure in one of the probe's processes until None is received.

    If the trial is refused or runs out of memory, it sends one sentence and ends.

    Args:
        settings: the settings of a trial with one worker.
        folder: an empty folder for the files that the trials write.
        pipe: the connection to the process that runs the probe; see ``Build`` and ``Measure``.
    """
    try:
        built: CohortProbe | None = None
        number = 0
        pipe.send(True)
        while (request := pipe.recv()) is not None:
            if isinstance(request, Build):
                built = None
                forget(torch.device(settings.device))
                built, number = CohortProbe(settings, folder / f"cohort{number}", request.arms), number + 1
                pipe.send(True)
            else:
                assert built is not None
                pipe.send(built.run(request))
    except EOFError:  # the process that runs the probe has ended
        return
    except (ValueError, RuntimeError) as error:  # a refusal, or out of memory
        pipe.send(f"{type(error).__name__}: {error}")
