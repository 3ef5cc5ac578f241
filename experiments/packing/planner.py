"""How trials share a machine, chosen from the measurements of a probe: in cohorts, side by side, or both.

A pure function of measurements. Of the packings that fit into memory, the one with the most trials per hour
is chosen. A packing with more workers must be clearly faster, because every further one makes the step times
noisier.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.json_files import check_fields

MARGIN = 0.1
"""Share of the memory that is left free, because allocators fragment and point clouds differ in size."""

MIN_SPEEDUP = 1.05
"""A packing with more workers or larger cohorts must be faster by this factor; less is the probe's noise."""


@dataclass(frozen=True)
class TrialLoad:
    """The work of one trial.

    Attributes:
        steps: training steps.
        chunks: chunks of frames that it evaluates.
    """

    steps: int
    chunks: int


@dataclass(frozen=True)
class Machine:
    """The hardware of one machine.

    Attributes:
        name: ``cpu`` or the GPU's name.
        gpus: number of GPUs.
        cores: CPU cores.
        gpu_gib: memory of one GPU; 0 without one.
        host_gib: memory of the machine.
    """

    name: str
    gpus: int
    cores: int
    gpu_gib: float
    host_gib: float


@dataclass(frozen=True)
class Candidate:
    """One way to share a GPU (or a machine without one), as the probe measured it.

    Attributes:
        concurrent: workers at once on it.
        threads: torch threads of each.
        start_s: seconds until a worker trains when all start together; the start of Ray is not counted.
        step_s: seconds per training step of all trials of a worker, mean of the workers.
        chunk_s: seconds per chunk of their evaluation, mean of the workers.
        gpu_gib: memory in use on the GPU, contexts included.
        host_gib: resident memory of all workers.
        arms: trials that each worker trains together.
    """

    concurrent: int
    threads: int
    start_s: float
    step_s: float
    chunk_s: float
    gpu_gib: float
    host_gib: float
    arms: int = 1

    def trials_per_hour(self, load: TrialLoad) -> float:
        """Return the number of trials per hour on one GPU; the time of the official metric is not counted."""
        seconds = self.start_s + load.steps * self.step_s + load.chunks * self.chunk_s
        return 3600 * self.concurrent * self.arms / seconds

    def fits(self, machine: Machine) -> bool:
        """Return True if it leaves the share ``MARGIN`` of GPU and host memory free."""
        share = 1 - MARGIN
        on_gpu = machine.gpu_gib == 0 or self.gpu_gib <= share * machine.gpu_gib
        return on_gpu and max(machine.gpus, 1) * self.host_gib <= share * machine.host_gib


@dataclass(frozen=True)
class PackingPlan:
    """The chosen way in which trials share a machine.

    Attributes:
        concurrent: groups of workers at once on the whole machine.
        threads: torch threads of each trial on a CPU; 0 keeps those of the settings.
        gpu_share: share of a GPU that each worker gets, 0 to 1.
        reason: the reason for the choice, one or two sentences.
        machine: the machine of the probe; None without a probe.
        candidates: all packings that were measured.
        arms_per_worker: most trials that a group trains together; None: as many as keep all groups busy.
    """

    concurrent: int
    threads: int = 0
    gpu_share: float = 1.0
    reason: str = ""
    machine: Machine | None = None
    candidates: tuple[Candidate, ...] = ()
    arms_per_worker: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; ``from_dict`` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "PackingPlan":
        """Rebuild a packing from ``to_dict``; a missing or unknown key is a JsonError."""
        check_fields(cls, plain)
        made = dict(plain)
        made["machine"] = Machine(**made["machine"]) if made.get("machine") else None
        made["candidates"] = tuple(Candidate(**one) for one in made.get("candidates", ()))
        return cls(**made)


def sizes_to_measure(machine: Machine, most: int) -> list[tuple[int, int]]:
    """Return the (workers at once, threads of each) that a probe measures: 1, 2, 4, ... workers.

    Args:
        machine: its cores limit the number of workers; on a CPU all cores are in use at every size.
        most: number of trials of the study.
    """
    cores = max(machine.cores // max(machine.gpus, 1), 1)
    sizes = []
    size = 1
    while size <= min(most, cores):
        sizes.append(size)
        size *= 2
    return [(size, cores // size if machine.gpus == 0 else 1) for size in sizes]


def cohorts_to_measure(most_arms: int) -> list[int]:
    """Return the sizes of cohort that a probe measures on one worker: 1, 2, 4, ... and the largest.

    Args:
        most_arms: trials of the study that may be one cohort.
    """
    return sorted({*(2**i for i in range(most_arms.bit_length()) if 2**i <= most_arms), most_arms})


def grown_gib(sizes: Sequence[int], gib: Sequence[float], size: int) -> float:
    """Return the memory that a larger cohort is expected to take: every trial takes as much as the last ones.

    Args:
        sizes: of the cohorts that were measured, increasing.
        gib: memory of each.
        size: of the larger cohort.
    """
    if len(sizes) < 2:
        return gib[-1]
    (a, b), (low, high) = sizes[-2:], gib[-2:]
    return high + (size - b) * max(high - low, 0.0) / (b - a)


def choose(candidates: Sequence[Candidate], load: TrialLoad, machine: Machine) -> PackingPlan:
    """Return the packing with the most trials per hour among those that fit.

    Args:
        candidates: at least one, in increasing order of workers, then of cohorts.
        load: the work of a trial.
        machine: the machine.
    """
    fitting = [one for one in candidates if one.fits(machine)] or [candidates[0]]
    best = fitting[0]
    for one in fitting[1:]:
        if one.trials_per_hour(load) >= MIN_SPEEDUP * best.trials_per_hour(load):
            best = one
    gpus = max(machine.gpus, 1)
    return PackingPlan(
        concurrent=gpus * best.concurrent,
        threads=best.threads if machine.gpus == 0 else 0,
        gpu_share=int(1e4 / best.concurrent) / 1e4,  # Ray counts in steps of 1e-4
        reason=_reason(best, candidates, load, machine),
        machine=machine,
        candidates=tuple(candidates),
        arms_per_worker=best.arms,
    )


def _reason(best: Candidate, candidates: Sequence[Candidate], load: TrialLoad, machine: Machine) -> str:
    """Return the reason for the choice, with what was measured."""
    place = machine.name if machine.gpus else f"{machine.cores} CPU cores"
    chosen = f"{_spell(best, machine)} on {place}: {best.trials_per_hour(load):.1f} trials an hour"
    others = [
        f"{_spell(one, machine)} {one.trials_per_hour(load):.1f}"
        + ("" if one.fits(machine) else " (does not fit into memory)")
        for one in candidates
        if one is not best
    ]
    against = f", against {'; '.join(others)}" if others else ", nothing else was possible"
    memory = f" They take {best.gpu_gib:.1f} of {machine.gpu_gib:.0f} GiB." if machine.gpus else ""
    return f"{chosen}{against} (by the probe).{memory}"


def _spell(one: Candidate, machine: Machine) -> str:
    if one.arms > 1:
        what = (
            f"{one.concurrent} cohorts of {one.arms} at once"
            if one.concurrent > 1
            else f"a cohort of {one.arms}"
        )
    else:
        what = f"{one.concurrent} at once" if one.concurrent > 1 else "1 alone"
    if machine.gpus:
        return what
    return f"{what} with {one.threads} thread{'s' if one.threads > 1 else ''}"
