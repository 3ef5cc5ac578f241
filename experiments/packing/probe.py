"""The probe: a few steps of one trial, then of several concurrent trials, timed on this machine.

Every process starts once. For each number of concurrent trials, that many processes run and the others wait.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean

from experiments.packing.planner import (
    Candidate,
    Machine,
    PackingPlan,
    TrialLoad,
    choose,
    sizes_to_measure,
)
from experiments.packing.probe_worker import TrialSpeed, serve
from experiments.storage.study_folder import StudyError
from pipeline.config.settings import TrialSettings
from pipeline.metrics.timing import device_name
from pipeline.runtime.cores import available_cores
from pipeline.storage.temporary import temporary_folder

SECONDS = {"cuda": 4.0, "cpu": 8.0}
"""Seconds for which each number of trials is measured: about ten steps of a trial, more on a GPU."""

ANSWER_TIMEOUT_S = 600
"""Longest wait for an answer of a process; the longest regular wait, for a compilation, is some minutes."""


def probe(settings: TrialSettings, most: int, seconds: float | None = None) -> PackingPlan:
    """Measure packings of a trial on this machine and pick one.

    Args:
        settings: a trial of the study with one worker; the most expensive one if they differ.
        most: number of trials of the study.
        seconds: how long each packing is measured; None takes ``SECONDS``.

    Raises:
        StudyError: not even one trial runs.
    """
    machine = describe(settings.device)
    seconds = seconds or SECONDS[settings.device]
    with temporary_folder("probe") as folder, _processes_of(settings, folder) as processes:
        processes.grow(1)
        candidates, single = [], None
        for size, threads in sizes_to_measure(machine, most):
            if single is not None and not _may_fit(size, single, machine):
                break
            try:
                # all that may be needed start together, because starts take most of the time of a probe
                processes.grow(size if single is None else _largest(machine, most, single))
                speeds = processes.measure(size, threads, seconds)
            except StudyError:
                if single is None:
                    raise
                break  # it did not fit although the estimate said so; the smaller sizes count
            single = single or speeds[0]
            candidates.append(_candidate(threads, processes.start_s(size), speeds, single))
    assert single is not None  # the first size was measured, or an error was raised
    return choose(candidates, TrialLoad(single.steps, single.chunks), machine)


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


def _largest(machine: Machine, most: int, single: TrialSpeed) -> int:
    return max(
        size for size, _ in sizes_to_measure(machine, most) if size == 1 or _may_fit(size, single, machine)
    )


def _may_fit(size: int, single: TrialSpeed, machine: Machine) -> bool:
    """Return True if ``size`` trials fit into memory, estimated from one trial."""
    return _candidate(1, 0.0, [single] * size, single).fits(machine)


def _candidate(threads: int, start_s: float, speeds: Sequence[TrialSpeed], single: TrialSpeed) -> Candidate:
    """Return the sum of concurrent trials; each needs as much memory besides its allocator's as one trial."""
    context = single.device_gib - single.reserved_gib
    return Candidate(
        concurrent=len(speeds),
        threads=threads,
        start_s=start_s,
        step_s=mean(speed.step_s for speed in speeds),
        chunk_s=mean(speed.chunk_s for speed in speeds),
        gpu_gib=sum(speed.reserved_gib + context for speed in speeds),
        host_gib=sum(speed.resident_gib for speed in speeds),
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
            arguments = (self._settings, self._folder / f"trial{index}", theirs)
            process = context.Process(target=serve, args=arguments, daemon=False)
            process.start()  # not a daemon: a daemon may not start the processes of a loader
            theirs.close()
            fresh.append(_Process(process, ours))
        self._processes += fresh
        for worker in fresh:
            _answer(worker)
            worker.start_s = time.monotonic() - begun

    def measure(self, size: int, threads: int, seconds: float) -> list[TrialSpeed]:
        """Let the first ``size`` processes run at the same time."""
        chosen = self._processes[:size]
        for worker in chosen:
            with suppress(OSError):  # it has died; reading its answer fails too
                worker.pipe.send((threads, seconds))
        return [speed for worker in chosen if isinstance(speed := _answer(worker), TrialSpeed)]

    def start_s(self, size: int) -> float:
        """Return the longest start among the first ``size``."""
        return max(worker.start_s for worker in self._processes[:size])

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
