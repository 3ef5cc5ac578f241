"""What a study takes on machines that one may rent: alone, and with its trials in cohorts.

Everything is computed from what was measured on one H200 (``cost.SPEEDS``, ``PARTS``); machines of another
kind are scaled by their data sheets. A trial of a cohort pays its own part of a step and its share of the
trunk and of loading. In an evaluation it pays for every detection, as alone.
"""

from dataclasses import dataclass, replace

from experiments.recipes.cost import Speed, cost_of, evaluated_frames, speed_of
from experiments.recipes.recipe import Recipe
from pipeline.config.settings import TrialSettings

ARMS = 16
"""Most trials of a cohort; two or more need no more memory than an H200 has (docs/studies/cohort)."""

PARTS = {"voxel0100_r50_800x320": (0.0169, 0.0378), "voxel0075_vov_1600x640": (0.0367, 0.0369)}
"""Part of a config's name -> seconds of the frozen trunk and of an arm's own part of a step, on one H200 at
``Speed.batch`` samples (docs/studies/step)."""

COHORT_STEP_S = {"voxel0100_r50_800x320": (16, 0.590)}
"""Part of a config's name -> arms of a cohort, and seconds of a step of all of them, on one H200
(docs/studies/cohort); without one it is trunk + arms x own part."""


@dataclass(frozen=True)
class Machine:
    """A machine with GPUs.

    Attributes:
        name: for tables.
        gpus: their number.
        slower: how many times as long as on an H200 a step takes, from and to.
    """

    name: str
    gpus: int
    slower: tuple[float, float] = (1.0, 1.0)


MACHINES = (
    Machine("1 x H200", 1),
    Machine("8 x H200", 8),
    # Data sheets: 989 against 362 TFLOPS (bfloat16, dense), 4.8 against 0.864 TB/s.
    Machine("8 x L40S", 8, (989 / 362, 4800 / 864)),
)


@dataclass(frozen=True)
class MachineCost:
    """What a study takes on a machine, from its first look to its last.

    Attributes:
        machine: see there.
        alone: hours if its trials run one after the other, each on all GPUs.
        in_cohorts: hours if they run in cohorts of ``arms``.
        arms: trials of a cohort: those of a seed, at most ``ARMS``.
    """

    machine: Machine
    alone: tuple[float, float]
    in_cohorts: tuple[float, float]
    arms: int

    def dollars(self, hours: tuple[float, float], per_gpu_hour: float) -> tuple[float, float]:
        """Return what hours of the machine cost."""
        few, most = (per_gpu_hour * self.machine.gpus * each for each in hours)
        return few, most


def machine_costs(recipe: Recipe) -> list[MachineCost]:
    """Return what a study takes on each of ``MACHINES`` whose GPUs divide the frames of a step.

    Nothing if its model was not measured on a GPU.
    """
    first, cost, frames = recipe.trials[0], cost_of(recipe), evaluated_frames(recipe)
    speed = speed_of(first)
    if speed is None or cost is None or frames is None or first.device != "cuda":
        return []
    if speed.config not in PARTS:
        return []
    found = []
    of_a_seed = min(ARMS, sum(settings.seed == first.seed for settings in recipe.trials))
    for machine in MACHINES:
        if first.train.batch_size * first.num_workers % machine.gpus:
            continue  # no trial can have a part of a frame on a GPU
        spread = _spread(first, machine.gpus)
        alone, shared = (
            tuple(
                trials * trial_hours(spread, speed, frames, arms, slower)
                for trials, slower in zip(cost.trials, machine.slower, strict=True)
            )
            for arms in (1, of_a_seed)
        )
        found.append(MachineCost(machine, (alone[0], alone[1]), (shared[0], shared[1]), of_a_seed))
    return found


def trial_hours(settings: TrialSettings, speed: Speed, frames: int, arms: int, slower: float) -> float:
    """Return what one trial takes as one of a cohort, hours of the whole machine.

    Args:
        settings: the trial, on as many workers as the machine has GPUs.
        speed: of its model on an H200.
        frames: to evaluate on, under each condition.
        arms: of the cohort; 1: it trains alone.
        slower: how many times as long as on an H200 a step takes.
    """
    train, loaders = settings.train, max(1, settings.data.num_loader_workers)
    larger = max(1.0, train.batch_size / speed.batch)
    step = slower * larger * (speed.step_s if arms == 1 else _cohort_step(speed.config, arms))
    step = max(step, train.batch_size * speed.load_s / loaders)
    detections = frames * len(settings.conditions) / settings.num_workers
    seconds = (speed.start_s + (train.steps or 0) * step) / arms + detections * slower * speed.frame_s
    return seconds / 3600


def _cohort_step(config: str, arms: int) -> float:
    """Return the seconds of a step of all arms of a cohort on one H200; ``config`` as in ``Speed``."""
    measured, seconds = COHORT_STEP_S.get(config, (0, 0.0))
    if measured == arms:
        return seconds
    trunk, own = PARTS[config]
    return trunk + arms * own


def _spread(settings: TrialSettings, gpus: int) -> TrialSettings:
    """Return a trial on so many GPUs, with as many frames a step of all together as before."""
    together = settings.train.batch_size * settings.num_workers
    train = replace(settings.train, batch_size=together // gpus)
    return replace(settings, num_workers=gpus, train=train)
