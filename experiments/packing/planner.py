"""How many trials run at once on a machine, chosen from what a probe measured.

A pure function of measurements. The most trials per hour win among what fits into memory; a fuller
machine must earn its place, since every further trial makes the step times noisier.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

MARGIN = 0.1
"""Part of the memory that is left free: allocators fragment, and point clouds differ in size."""

LEAST_GAIN = 1.05
"""A packing with more trials at once must be this much faster: below, it is the probe's own noise."""


@dataclass(frozen=True)
class TrialLoad:
    """What one trial does.

    Attributes:
        steps: training steps.
        chunks: chunks of frames that it evaluates.
    """

    steps: int
    chunks: int


@dataclass(frozen=True)
class Machine:
    """What there is.

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
    """One way to share a GPU (or, without one, the machine), as the probe saw it.

    Attributes:
        concurrent: trials at once on it.
        threads: torch threads of each.
        start_s: seconds until a trial trains, started beside the others; Ray's own start not counted.
        step_s: seconds per training step, mean of the trials.
        chunk_s: seconds per chunk of evaluation, mean of the trials.
        gpu_gib: memory in use on the GPU, contexts included.
        host_gib: resident memory of all trials.
    """

    concurrent: int
    threads: int
    start_s: float
    step_s: float
    chunk_s: float
    gpu_gib: float
    host_gib: float

    def trials_per_hour(self, load: TrialLoad) -> float:
        """Return how many trials end per hour on one GPU; what the official metric takes is left out."""
        seconds = self.start_s + load.steps * self.step_s + load.chunks * self.chunk_s
        return 3600 * self.concurrent / seconds

    def fits(self, machine: Machine) -> bool:
        """Tell whether it leaves ``MARGIN`` of both memories free."""
        share = 1 - MARGIN
        on_gpu = machine.gpu_gib == 0 or self.gpu_gib <= share * machine.gpu_gib
        return on_gpu and max(machine.gpus, 1) * self.host_gib <= share * machine.host_gib


@dataclass(frozen=True)
class PackingPlan:
    """How trials share a machine.

    Attributes:
        concurrent: trials at once on the whole machine.
        threads: torch threads of each on a CPU; 0 leaves them as the settings say.
        gpu_share: part of a GPU that each worker gets.
        reason: why, in a sentence or two.
        machine: what it was chosen for; None if nobody measured.
        candidates: what was measured.
    """

    concurrent: int
    threads: int = 0
    gpu_share: float = 1.0
    reason: str = ""
    machine: Machine | None = None
    candidates: tuple[Candidate, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; ``from_dict`` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "PackingPlan":
        """Rebuild a packing from ``to_dict``; a missing or unknown key is a TypeError."""
        made = dict(plain)
        made["machine"] = Machine(**made["machine"]) if made["machine"] else None
        made["candidates"] = tuple(Candidate(**one) for one in made["candidates"])
        return cls(**made)


def ladder(machine: Machine, most: int) -> list[tuple[int, int]]:
    """Return the (trials at once, threads of each) worth measuring, from one trial on.

    Args:
        machine: its cores bound the number of trials; on a CPU all cores are always in use.
        most: trials that are to run.
    """
    cores = max(machine.cores // max(machine.gpus, 1), 1)
    sizes = []
    size = 1
    while size <= min(most, cores):
        sizes.append(size)
        size *= 2
    return [(size, cores // size if machine.gpus == 0 else 1) for size in sizes]


def choose(candidates: Sequence[Candidate], load: TrialLoad, machine: Machine) -> PackingPlan:
    """Pick the packing with the most trials per hour that fits.

    Args:
        candidates: at least one, in order of the trials at once.
        load: what a trial does.
        machine: where.
    """
    fitting = [one for one in candidates if one.fits(machine)] or [candidates[0]]
    best = fitting[0]
    for one in fitting[1:]:
        if one.trials_per_hour(load) >= LEAST_GAIN * best.trials_per_hour(load):
            best = one
    gpus = max(machine.gpus, 1)
    return PackingPlan(
        concurrent=gpus * best.concurrent,
        threads=best.threads if machine.gpus == 0 else 0,
        gpu_share=int(1e4 / best.concurrent) / 1e4,  # Ray counts in steps of 1e-4
        reason=_reason(best, candidates, load, machine),
        machine=machine,
        candidates=tuple(candidates),
    )


def _reason(best: Candidate, candidates: Sequence[Candidate], load: TrialLoad, machine: Machine) -> str:
    """Say in words what was measured."""
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
    at_once = f"{one.concurrent} at once" if one.concurrent > 1 else "1 alone"
    if machine.gpus:
        return at_once
    return f"{at_once} with {one.threads} thread{'s' if one.threads > 1 else ''}"
