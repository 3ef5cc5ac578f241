"""Studies whose truth is known, drawn as arrays.

``train`` draws what all arms of a design score with all seeds, so that a small study and the full grid can
be judged on the same trainings. ``time_steps`` draws a run of the stopwatch, ``time_trials`` the step times
of the trials, in the order in which they ran.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.model.fit import Response
from experiments.analysis.timings import Timings, Visit
from experiments.calibration.truth import COLLAPSE, EARLY_CORRELATION, STOPPED_SHARE, StepTimes, Truth
from experiments.recipes.factorial import Arm
from pipeline.evaluation.bootstrap import drawn_counts

Array = NDArray[np.float64]

TREATMENT = "window"
"""The level that simulated studies compare with ``none``."""
MACHINE_NOISE = 0.05
"""Standard deviation of the level of a stopwatch's round, which its visits share."""


@dataclass(frozen=True)
class Trained:
    """The scores of simulated trials.

    Attributes:
        arms, seeds: the trials: every arm with every seed, arms outermost.
        response: values, draws and early values, one column per trial in that order.
        absent: (trials,) whether a trial never ran.
        lost: (trials,) whether a trial diverged.
        errors: (sites,) what the trials' noise does to the estimated gains, in standard errors.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    response: Response
    absent: NDArray[np.bool_]
    lost: NDArray[np.bool_]
    errors: Array


def train(truth: Truth, arms: Sequence[Arm], seeds: Sequence[int], rng: np.random.Generator) -> Trained:
    """Train every arm with every seed.

    Args:
        truth: what is true.
        arms: levels ``none`` or another per site of the truth.
        seeds: the blocks.
        rng: draws everything that varies.
    """
    on = biased(tuple(arms)).repeat(len(seeds), axis=0)
    block = np.tile(np.arange(len(seeds)), len(arms))
    noise = _noise(truth, on, rng)
    of_sites = truth.seed_by_site * rng.standard_normal((len(seeds), on.shape[1]))
    noise += (of_sites[block] * (on - 0.5)).sum(axis=1)
    mean = on @ np.array(list(truth.gains.values())) + noise
    sites = list(truth.net)
    for (one, other), gain in truth.pairs.items():
        mean += gain * (on[:, sites.index(one)] - 0.5) * (on[:, sites.index(other)] - 0.5)
    mean += truth.seed_noise * rng.standard_normal(len(seeds))[block]
    halves = on - 0.5
    errors = halves.T @ noise / np.sqrt((halves**2).sum(axis=0)) / truth.noise
    lost, low = _fallen(truth, on, block, rng)
    values, draws = _over_scenes(truth, mean - COLLAPSE * low, on, rng)
    values[lost], draws[:, lost] = np.nan, np.nan
    early = _stop(truth, values, draws, block, rng)
    absent = np.zeros(len(on), dtype=bool)
    absent[rng.choice(len(on), truth.faults.missing, replace=False)] = True
    response = Response(values, draws, truth.scenes, early)
    return Trained(tuple(arms), tuple(seeds), response, absent, lost, errors)


def _noise(truth: Truth, on: Array, rng: np.random.Generator) -> Array:
    """Return (trials,) the noise of every training that is the same in all scenes."""
    count = len(on)
    if truth.skew:
        raw = truth.skew * (rng.standard_exponential(count) - 1)
    elif math.isinf(truth.tails):
        raw = rng.standard_normal(count)
    else:
        raw = rng.standard_t(truth.tails, count) * math.sqrt((truth.tails - 2) / truth.tails)
    shared = 1 - truth.per_scene if truth.scenes else 1.0
    return np.asarray(truth.noise * math.sqrt(shared) * np.where(on[:, 0] > 0, truth.unequal, 1.0) * raw)


def _fallen(
    truth: Truth, on: Array, block: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (trials,) which trials diverge, and which collapse to a finite value."""
    faults, trials = truth.faults, len(on)
    fall = rng.choice(trials, faults.diverging + faults.collapsing, replace=False)
    lost = np.isin(np.arange(trials), fall[: faults.diverging])
    lost |= block == (-1 if faults.lost_seed is None else faults.lost_seed)
    low = np.isin(np.arange(trials), fall[faults.diverging :])
    if faults.crashing:
        risky = np.flatnonzero(on[:, list(truth.net).index(faults.crash_site)])
        exactly = rng.choice(risky, round(faults.crashing * len(risky)), replace=False)
        low[risky[rng.random(len(risky)) < faults.crashing] if faults.by_chance else exactly] = True
    if faults.stopped_collapses:
        low[rng.choice(np.flatnonzero(block > 0), faults.stopped_collapses, replace=False)] = True
    return lost, low


def _over_scenes(truth: Truth, mean: Array, on: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return (trials,) values and (draws, trials) values on resampled scenes."""
    if not truth.scenes:
        return mean.copy(), np.empty((0, len(mean)))
    spread = truth.scene_gain * math.sqrt(truth.scenes)
    shift = spread * rng.standard_normal((on.shape[1], truth.scenes))  # of a site's gain, scene by scene
    own = (
        truth.noise * math.sqrt(truth.per_scene * truth.scenes) * rng.standard_normal((len(on), truth.scenes))
    )
    per_scene = mean[:, None] + (on - 0.5) @ shift + own
    return per_scene.mean(axis=1), (_shares(truth.scenes) @ per_scene.T).copy()


def _stop(
    truth: Truth, values: Array, draws: Array, block: NDArray[np.int64], rng: np.random.Generator
) -> Array:
    """Stop trials early; return (steps, trials) what all of them had at the step where some stopped."""
    faults = truth.faults
    if not faults.stopping and not faults.stopped_collapses:
        return np.empty((0, 0))
    late = math.sqrt(1 - EARLY_CORRELATION**2) / EARLY_CORRELATION
    early = values + late * truth.noise * rng.standard_normal(len(values))
    if faults.stopping:
        for index in range(int(block.max()) + 1):
            of_seed = np.flatnonzero(block == index)
            worst = of_seed[np.argsort(early[of_seed])[: int(STOPPED_SHARE * len(of_seed))]]
            values[worst], draws[:, worst] = np.nan, np.nan
    if faults.stopped_collapses:  # the floor is the worst trial of the first wave less a margin
        stopped = (block > 0) & (early < early[block == 0].min() - COLLAPSE / 4)
        values[stopped], draws[:, stopped] = np.nan, np.nan
    return early[None]


def time_steps(
    times: StepTimes, sites: tuple[str, ...], arms: Sequence[Arm], rng: np.random.Generator
) -> Timings:
    """Run the stopwatch: all plans in turn, round by round, in an order drawn anew, the baseline twice.

    Args:
        times: what is true.
        sites: the factors.
        arms: the plans; one of them has no bias.
        rng: draws orders and noise.
    """
    plans = tuple(arms)
    baseline = int(biased(plans).sum(axis=1).argmin())
    a_round = np.array([*range(len(plans)), baseline])
    orders = np.array([rng.permutation(a_round) for _ in range(times.rounds)])
    level = MACHINE_NOISE * rng.standard_normal((times.rounds, 1))  # what the machine did meanwhile
    log_ms = true_growth(times, plans)[orders] + level + times.step_noise * rng.standard_normal(orders.shape)
    visits = []
    for order, logs in zip(orders.tolist(), log_ms.tolist(), strict=True):
        first = order.index(baseline)
        visits += [
            Visit(plans[plan], log, float(place), plan == baseline and place > first)
            for place, (plan, log) in enumerate(zip(order, logs, strict=True))
        ]
    terms = tuple((site, TREATMENT) for site in sites)
    return Timings(sites, terms, tuple(visits), np.repeat(np.arange(times.rounds), len(a_round)))


@dataclass(frozen=True)
class TimedTrials:
    """The step times of trials, arms outermost, and where and when they ran.

    Attributes:
        log_ms: (trials,) logarithm of the step time.
        place: (trials,) place in the order in which the study ran, from 0.
        slot: (trials,) 0 or 1.
    """

    log_ms: Array
    place: NDArray[np.int64]
    slot: NDArray[np.int64]


def time_trials(
    times: StepTimes, arms: Sequence[Arm], seeds: Sequence[int], rng: np.random.Generator
) -> TimedTrials:
    """Run all trials, seed after seed, in an order drawn within each, two at a time."""
    count = len(arms)
    place = np.empty((count, len(seeds)), dtype=np.int64)
    for index in range(len(seeds)):
        place[:, index] = index * count + rng.permutation(count)
    order = place.ravel()
    slot = order % 2 if times.slots == "alternating" else rng.integers(0, 2, order.size)
    log_ms = true_growth(times, tuple(arms)).repeat(len(seeds))
    log_ms += math.log1p(times.drift) * order / max(order.size - 1, 1)
    log_ms += math.log1p(times.slot_gap) * slot + times.trial_noise * rng.standard_normal(order.size)
    return TimedTrials(log_ms, order, slot)


def true_growth(times: StepTimes, arms: tuple[Arm, ...]) -> Array:
    """Return (arms,) the true growth of the logarithm of the step time."""
    on = biased(arms)
    return np.asarray(times.fixed * on.any(axis=1) + times.site * on.sum(axis=1))


def ranked(
    truth: Truth,
    error: float,
    rng: np.random.Generator,
    trained: Trained | None = None,
    correlation: float = 0.0,
) -> tuple[str, ...]:
    """Rank the sites as a screening does whose estimates err by so many noises of one run.

    Args:
        truth: what is true.
        error: standard deviation of a screened gain.
        rng: draws what the screening errs by.
        trained: the trials of the study, if the screening shares errors with them.
        correlation: of its errors with those of the study.
    """
    wrong = math.sqrt(1 - correlation**2) * rng.standard_normal(len(truth.net))
    if trained is not None:
        wrong += correlation * trained.errors
    guess = np.array(list(truth.gains.values())) + error * wrong
    return tuple(np.array(list(truth.net))[np.argsort(-guess, kind="stable")].tolist())


@lru_cache
def biased(arms: tuple[Arm, ...]) -> Array:
    """Return (arms, sites): 1 where an arm has a bias at a site, else 0."""
    return np.array([[level != "none" for level in arm] for arm in arms], dtype=float)


@lru_cache
def _shares(scenes: int) -> Array:
    return drawn_counts(scenes) / scenes
