"""The probe: a few steps of one trial, of cohorts, and of several workers at once, timed on this machine.

First one worker runs cohorts of 1, 2, 4, ... trials, as long as larger ones are faster. Then several workers
run side by side, each with one trial, and each with a cohort. Every process starts once.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean

from experiments.packing.planner import (
    MIN_SPEEDUP,
    Candidate,
    Machine,
    PackingPlan,
    TrialLoad,
    choose,
    cohorts_to_measure,
    grown_gib,
    sizes_to_measure,
)
from experiments.packing.probe_worker import Build, Measure, TrialSpeed, serve
from experiments.storage.study_folder import StudyError
from pipeline.config.settings import TrialSettings
from pipeline.metrics.timing import device_name
from pipeline.runtime.cores import available_cores
from pipeline.storage.temporary import temporary_folder

SECONDS = {"cuda": 4.0, "cpu": 8.0}
"""Seconds for which each packing is measured: about ten steps of a trial, more on a GPU."""

ANSWER_TIMEOUT_S = 600
"""Longest wait for an answer of a process; the longest regular wait, for a compilation, is some minutes."""


def probe(
    settings: TrialSettings, most: int, most_arms: int = 1, seconds: float | None = None
) -> PackingPlan:
    """Measure packings of a trial on this machine and pick one.

    Args:
        settings: a trial of the study with one worker; the most expensive one if they differ.
        most: number of trials of the study.
        most_arms: number of them that may be one cohort.
        seconds: how long each packing is measured; None takes ``SECONDS``.

    Raises:
        StudyError: not even one trial runs.
    """
    machine = describe(settings.device)
    with temporary_folder("probe") as folder, _processes_of(settings, folder) as processes:
        found = _Probe(machine, processes, seconds or SECONDS[settings.device])
        found.measure(1, 1)
        try:
            found.grow_cohorts(most_arms)
        except StudyError:  # it did not fit although the estimate said so; what was measured counts
            processes.close()  # the one that ran out of memory has ended
        with suppress(StudyError):
            found.grow_workers(most)
    candidates = sorted(found.candidates, key=lambda one: (one.concurrent, one.arms))
    return choose(candidates, found.load, machine)


class _Probe:
    """The measurements of a probe so far.

    Args:
        machine: that it runs on.
        processes: the workers.
        seconds: how long each packing is measured.
    """

    def __init__(self, machine: Machine, processes: "_Processes", seconds: float) -> None:
        self._machine, self._processes, self._seconds = machine, processes, seconds
        self._alone: dict[int, TrialSpeed] = {}
        self.candidates: list[Candidate] = []

    @property
    def load(self) -> TrialLoad:
        """The work of a trial."""
        return TrialLoad(self._alone[1].steps, self._alone[1].chunks)

    def measure(self, workers: int, arms: int) -> Candidate:
        """Measure workers with a cohort each.

        Raises:
            StudyError: a process failed, died, or did not answer in time.
        """
        start_s = self._processes.build(workers, arms)
        threads = dict(sizes_to_measure(self._machine, workers)).get(workers, 1)
        speeds = self._processes.measure(workers, threads, self._seconds)
        if workers == 1:
            self._alone[arms] = speeds[0]
        self.candidates.append(_candidate(threads, start_s, speeds, self._alone[1], arms))
        return self.candidates[-1]

    def grow_cohorts(self, most_arms: int) -> None:
        """Measure cohorts on one worker as long as they fit and more trials make them clearly faster."""
        best = self.candidates[0]
        for arms in cohorts_to_measure(most_arms)[1:]:
            if not self._may_fit(1, arms):
                return
            one = self.measure(1, arms)
            if one.trials_per_hour(self.load) < MIN_SPEEDUP * best.trials_per_hour(self.load):
                return
            best = one

    def grow_workers(self, most: int) -> None:
        """Measure workers side by side, with one trial each and with the best cohort that the study fills."""
        rate = {
            one.arms: one.trials_per_hour(self.load) for one in self.candidates if one.fits(self._machine)
        }
        best = max(rate, key=lambda arms: rate[arms], default=1)
        sizes = [workers for workers, _ in sizes_to_measure(self._machine, most)[1:]]
        fitting = [workers for workers in sizes if self._may_fit(workers, 1)]
        self._processes.grow(max(fitting, default=1))  # together: starts take most of the time of a probe
        for workers in fitting:
            for arms in sorted({1, max(arms for arms in rate if arms <= max(min(best, most // workers), 1))}):
                if self._may_fit(workers, arms):
                    self.measure(workers, arms)

    def _may_fit(self, workers: int, arms: int) -> bool:
        """Return whether a packing fits into memory, estimated from one worker."""
        sizes = [size for size in sorted(self._alone) if size <= arms]
        last, first = self._alone[sizes[-1]], self._alone[1]
        if sizes[-1] < arms:
            reserved, resident = (
                grown_gib(sizes, [getattr(self._alone[size], name) for size in sizes], arms)
                for name in ("reserved_gib", "resident_gib")
            )
            last = replace(last, reserved_gib=reserved, resident_gib=resident)
        return _candidate(1, 0.0, [last] * workers, first, arms).fits(self._machine)


def describe(device: str) -> Machine:
    """Return the hardware of this machine; ``gpus`` is 0 for the device ``cpu``."""
    import torch

    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if device != "cuda":
        return Machine("cpu", 0, available_cores(), 0.0, host)
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Machine(
        device_name(torch.device("cuda")), torch.cuda.device_count(), available_cores(), memory, host
    )


def _candidate(
    threads: int, start_s: float, speeds: Sequence[TrialSpeed], single: TrialSpeed, arms: int
) -> Candidate:
    """Return the sum of workers; each needs as much memory besides its allocator's as a single trial."""
    context = single.device_gib - single.reserved_gib
    return Candidate(
        concurrent=len(speeds),
        threads=threads,
        start_s=start_s,
        step_s=mean(speed.step_s for speed in speeds),
        chunk_s=mean(speed.chunk_s for speed in speeds),
        gpu_gib=sum(speed.reserved_gib + context for speed in speeds),
        host_gib=sum(speed.resident_gib for speed in speeds),
        arms=arms,
    )


@dataclass
class _Process:
    """One process of a probe."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    start_s: float = 0.0


class _Processes:
    """The processes of a probe."""

    def __init__(self, settings: TrialSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._processes: list[_Process] = []

    def grow(self, size: int) -> None:
        """Start processes until there are ``size``, together, and wait for them to be ready."""
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        begun, fresh = time.monotonic(), []
        for index in range(len(self._processes), size):
            ours, theirs = context.Pipe()
            arguments = (self._settings, self._folder / f"worker{index}", theirs)
            process = context.Process(target=serve, args=arguments, daemon=False)
            process.start()  # not a daemon: a daemon may not start the processes of a loader
            theirs.close()
            fresh.append(_Process(process, ours))
        self._processes += fresh
        for worker in fresh:
            _answer(worker)
            worker.start_s = time.monotonic() - begun

    def build(self, size: int, arms: int) -> float:
        """Let the first ``size`` processes, together, build a cohort each; return the longest start, s."""
        self.grow(size)
        begun, started = time.monotonic(), max(worker.start_s for worker in self._processes[:size])
        self._ask(size, Build(arms))
        return started + time.monotonic() - begun

    def measure(self, size: int, threads: int, seconds: float) -> list[TrialSpeed]:
        """Let the first ``size`` processes run at the same time."""
        speeds = self._ask(size, Measure(threads, seconds))
        return [speed for speed in speeds if isinstance(speed, TrialSpeed)]

    def _ask(self, size: int, request: Build | Measure) -> list[object]:
        """Ask the first ``size`` processes, and wait for all of them."""
        chosen = self._processes[:size]
        for worker in chosen:
            with suppress(OSError):  # it has died; reading its answer fails too
                worker.pipe.send(request)
        return [_answer(worker) for worker in chosen]

    def close(self) -> None:
        """End all processes."""
        for worker in self._processes:
            with suppress(OSError):  # it has died
                worker.pipe.send(None)
        for worker in self._processes:
            worker.process.join(timeout=10)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join()
        self._processes = []


def _answer(worker: _Process) -> object:
    """Return the next answer of a process.

    Raises:
        StudyError: the process failed, died, or did not answer in time.
    """
    try:
        if not worker.pipe.poll(ANSWER_TIMEOUT_S):
            raise StudyError(
                f"the probe: a trial was silent for {ANSWER_TIMEOUT_S} s; name the packing by --concurrent"
            )
        answer = worker.pipe.recv()
    except EOFError:
        raise StudyError("the probe: the process of a trial died; name the packing by --concurrent") from None
    if isinstance(answer, str):
        raise StudyError(f"the probe: a trial cannot run: {answer}")
    return answer


@contextmanager
def _processes_of(settings: TrialSettings, folder: Path) -> Iterator[_Processes]:
    processes = _Processes(settings, folder)
    try:
        yield processes
    finally:
        processes.close()
