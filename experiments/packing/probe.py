"""A few steps of one trial alone, and of several at once, to see how many a machine should run.

All processes start once; for each size as many of them run as it needs, while the others wait.
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

from experiments.packing.planner import Candidate, Machine, PackingPlan, TrialLoad, choose, ladder
from experiments.packing.probe_worker import TrialSpeed, serve
from experiments.storage.study_folder import StudyError
from pipeline.config.settings import TrialSettings
from pipeline.metrics.timing import device_name
from pipeline.storage.temporary import temporary_folder

SECONDS = {"cuda": 4.0, "cpu": 8.0}
"""How long each size is measured: about ten steps of a trial, more on a GPU."""

PATIENCE_S = 600
"""A trial of the probe that has not answered by then never will: compiling takes minutes at worst."""


def probe(settings: TrialSettings, most: int, seconds: float | None = None) -> PackingPlan:
    """Measure packings of a trial on this machine and pick one.

    Args:
        settings: a trial of the study, of one worker; the most expensive one if they differ.
        most: trials that are to run.
        seconds: how long each packing is measured; None takes ``SECONDS``.

    Raises:
        StudyError: not even one trial runs.
    """
    machine = describe(settings.device)
    seconds = seconds or SECONDS[settings.device]
    with temporary_folder("probe") as folder, _crew(settings, folder) as crew:
        crew.grow(1)
        candidates, alone = [], None
        for size, threads in ladder(machine, most):
            if alone is not None and not _may_fit(size, alone, machine):
                break
            try:
                # all that may be needed start together: starting is most of what a probe costs
                crew.grow(size if alone is None else _largest(machine, most, alone))
                paces = crew.measure(size, threads, seconds)
            except StudyError:
                if alone is None:
                    raise
                break  # what fitted by its size did not fit in fact; the smaller ones stand
            alone = alone or paces[0]
            candidates.append(_candidate(threads, crew.start_s(size), paces, alone))
    assert alone is not None  # the first size was measured, or an error was raised
    return choose(candidates, TrialLoad(alone.steps, alone.chunks), machine)


def describe(device: str) -> Machine:
    """Look at this machine; ``gpus`` is 0 for the device ``cpu``."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if device != "cuda":
        return Machine("cpu", 0, cores, 0.0, host)
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Machine(device_name(torch.device("cuda")), torch.cuda.device_count(), cores, memory, host)


def _largest(machine: Machine, most: int, alone: TrialSpeed) -> int:
    return max(size for size, _ in ladder(machine, most) if size == 1 or _may_fit(size, alone, machine))


def _may_fit(size: int, alone: TrialSpeed, machine: Machine) -> bool:
    """Tell whether ``size`` trials should fit, judged by one alone."""
    return _candidate(1, 0.0, [alone] * size, alone).fits(machine)


def _candidate(threads: int, start_s: float, paces: Sequence[TrialSpeed], alone: TrialSpeed) -> Candidate:
    """Sum up what trials saw that ran at once; what one alone has beside its allocator's memory, each has."""
    context = alone.device_gib - alone.reserved_gib
    return Candidate(
        concurrent=len(paces),
        threads=threads,
        start_s=start_s,
        step_s=mean(pace.step_s for pace in paces),
        chunk_s=mean(pace.chunk_s for pace in paces),
        gpu_gib=sum(pace.reserved_gib + context for pace in paces),
        host_gib=sum(pace.resident_gib for pace in paces),
    )


@dataclass
class _Member:
    """One process of the crew."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    start_s: float = 0.0


class _Crew:
    """The processes of a probe."""

    def __init__(self, settings: TrialSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._members: list[_Member] = []

    def grow(self, size: int) -> None:
        """Start processes until there are ``size``, together, and wait for them to be ready."""
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        begun, fresh = time.monotonic(), []
        for index in range(len(self._members), size):
            ours, theirs = context.Pipe()
            arguments = (self._settings, self._folder / f"trial{index}", theirs)
            process = context.Process(target=serve, args=arguments, daemon=False)
            process.start()  # not a daemon: loaders are processes of its own
            theirs.close()
            fresh.append(_Member(process, ours))
        self._members += fresh
        for member in fresh:
            _answer(member)
            member.start_s = time.monotonic() - begun

    def measure(self, size: int, threads: int, seconds: float) -> list[TrialSpeed]:
        """Let the first ``size`` processes run at the same time."""
        chosen = self._members[:size]
        for member in chosen:
            with suppress(OSError):  # it has died; its answer will say so
                member.pipe.send((threads, seconds))
        return [pace for member in chosen if isinstance(pace := _answer(member), TrialSpeed)]

    def start_s(self, size: int) -> float:
        """Return the longest start among the first ``size``."""
        return max(member.start_s for member in self._members[:size])

    def dismiss(self) -> None:
        """End all processes."""
        for member in self._members:
            with suppress(OSError):  # it has died
                member.pipe.send(None)
        for member in self._members:
            member.process.join(timeout=10)
            if member.process.is_alive():
                member.process.terminate()
                member.process.join()


def _answer(member: _Member) -> object:
    """Wait for a process' next word.

    Raises:
        StudyError: it says why it cannot go on, died, or is silent.
    """
    try:
        if not member.pipe.poll(PATIENCE_S):
            raise StudyError(
                f"the probe: a trial was silent for {PATIENCE_S} s; name the packing by --concurrent"
            )
        word = member.pipe.recv()
    except EOFError:
        raise StudyError("the probe: the process of a trial died; name the packing by --concurrent") from None
    if isinstance(word, str):
        raise StudyError(f"the probe: a trial cannot run: {word}")
    return word


@contextmanager
def _crew(settings: TrialSettings, folder: Path) -> Iterator[_Crew]:
    crew = _Crew(settings, folder)
    try:
        yield crew
    finally:
        crew.dismiss()
