"""Studies whose truth is known, drawn as arrays and judged by the code that judges real ones.

A surface holds the gain of every site and how runs, seeds and scenes vary; the unit is the standard
deviation of one run. ``measure`` draws what all arms of a design score with all seeds, so that a small
study and the full grid can be judged on the same trainings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.design_table import DesignTable, TrialRow
from experiments.analysis.model.fit import Fit, Response
from experiments.analysis.model.linear_model import fit_gain
from experiments.analysis.price import free_of_charge
from experiments.analysis.verdicts import Verdict, judge
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.factorial import Arm
from pipeline.evaluation.bootstrap import drawn_counts

Array = NDArray[np.float64]

COLLAPSE = 20.0
"""What a training that collapses without a NaN loses, in noises of one run: a detector that finds little."""
STOPPED_SHARE = 0.25
"""Share of a seed's trials that early stopping ends."""
EARLY_CORRELATION = 0.8
"""Correlation of a run's noise at the early step with its noise at the end."""


@dataclass(frozen=True)
class Surface:
    """The truth of a simulated study; all numbers are in noises of one run.

    Attributes:
        gain: site -> true gain, averaged over what the other sites have.
        pairs: (site, site) -> true interaction.
        seed_noise: standard deviation of a seed's own level, the same for all arms.
        scenes: validation scenes.
        per_scene: share of a run's variance that differs from scene to scene.
        scene_gain: standard deviation of a site's mean gain over so many scenes, from one set of
            scenes to another.
        tails: degrees of freedom of Student's noise (scaled to the same standard deviation); infinity is
            normal noise.
        diverging: trials of each study that end without a number.
        lost_seed: seed of which all trials end without a number.
        collapsing: trials of each study that end ``COLLAPSE`` lower.
        stopping: whether the worst trials of every seed are stopped early.
    """

    gain: Mapping[str, float]
    pairs: Mapping[tuple[str, str], float] = field(default_factory=dict)
    seed_noise: float = 2.0
    scenes: int = 150
    per_scene: float = 0.3
    scene_gain: float = 0.16
    tails: float = math.inf
    diverging: int = 0
    lost_seed: int | None = None
    collapsing: int = 0
    stopping: bool = False


@dataclass(frozen=True)
class SimulatedMeasurement:
    """The scores of simulated trials.

    Attributes:
        arms, seeds: the trials: every arm with every seed, arms outermost.
        response: values, draws and early values, one column per trial in that order.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    response: Response


def measure(
    surface: Surface, arms: Sequence[Arm], seeds: Sequence[int], rng: np.random.Generator
) -> SimulatedMeasurement:
    """Train every arm with every seed.

    Args:
        surface: the truth.
        arms: levels ``none`` or another per site of the surface.
        seeds: the blocks.
        rng: draws everything that varies.
    """
    sites = list(surface.gain)
    on = np.repeat([[level != "none" for level in arm] for arm in arms], len(seeds), axis=0).astype(float)
    block = np.tile(np.arange(len(seeds)), len(arms))
    trials, scenes = len(on), surface.scenes
    mean = on @ np.array([surface.gain[site] for site in sites])
    for (one, other), gain in surface.pairs.items():
        mean += gain * (on[:, sites.index(one)] - 0.5) * (on[:, sites.index(other)] - 0.5)
    mean += surface.seed_noise * rng.standard_normal(len(seeds))[block]
    whole = math.sqrt(1 - surface.per_scene) * _noise(trials, surface.tails, rng)
    mean += whole
    fall = rng.choice(trials, surface.diverging + surface.collapsing, replace=False)
    mean[fall[surface.diverging :]] -= COLLAPSE
    spread = surface.scene_gain * math.sqrt(scenes)
    shift = spread * rng.standard_normal((len(sites), scenes))  # of a site's gain, from scene to scene
    own = math.sqrt(surface.per_scene * scenes) * rng.standard_normal((trials, scenes))
    per_scene = mean[:, None] + (on - 0.5) @ shift + own
    draws = (_shares(scenes) @ per_scene.T).copy()
    values = per_scene.mean(axis=1)
    early_values = np.empty((0, 0))
    lost = np.isin(np.arange(trials), fall[: surface.diverging])
    lost |= np.array(seeds)[block] == surface.lost_seed
    values[lost], draws[:, lost] = np.nan, np.nan
    if surface.stopping:
        late = math.sqrt(1 - EARLY_CORRELATION**2) / EARLY_CORRELATION
        early = values + late * rng.standard_normal(trials)
        for index in range(len(seeds)):
            of_seed = np.flatnonzero(block == index)
            worst = of_seed[np.argsort(early[of_seed])[: int(STOPPED_SHARE * len(of_seed))]]
            values[worst], draws[:, worst] = np.nan, np.nan
        early_values = early[None]
    return SimulatedMeasurement(tuple(arms), tuple(seeds), Response(values, draws, scenes, early_values))


def judge_look(
    measured: SimulatedMeasurement, arms: Sequence[Arm], look: int, rule: DecisionRule
) -> tuple[Verdict, ...]:
    """Judge some arms at one look, without any price: what is planted are net gains.

    Args:
        measured: at least these arms with all seeds up to the look.
        arms: the arms of the study.
        look: which look of the rule, from 1.
        rule: names its sites, seeds and looks.
    """
    fit, table = fit_look(measured, arms, look, rule)
    return judge(table, fit, free_of_charge(table), rule)


def fit_look(
    measured: SimulatedMeasurement, arms: Sequence[Arm], look: int, rule: DecisionRule
) -> tuple[Fit, DesignTable]:
    """Fit what ``judge_look`` judges."""
    seeds = measured.seeds[: rule.interim_analyses[look - 1]]
    columns = _columns(measured.arms, tuple(arms), len(measured.seeds), len(seeds))
    response = measured.response
    part = Response(
        response.values[columns],
        response.draws[:, columns],
        response.num_scenes,
        response.early_values[:, columns] if len(response.early_values) else response.early_values,
    )
    table = _table(rule.sites, tuple(arms), seeds, look, rule.interim_analyses)
    return fit_gain(part, table), table


def follow(
    measured: SimulatedMeasurement, arms: Sequence[Arm], rule: DecisionRule
) -> tuple[tuple[Verdict, ...], int]:
    """Go from look to look as ``study.next_wave`` does, until all is settled or no look is left.

    Returns:
        The verdicts and the number of trials; no verdicts if the trials support none at the last look.
    """
    verdicts: tuple[Verdict, ...] = ()
    for look, seeds in enumerate(rule.interim_analyses, 1):
        try:
            verdicts = judge_look(measured, arms, look, rule)
        except AnalysisError:  # too many trials diverged; there may be a next look
            verdicts = ()
        if (verdicts and all(verdict.settled for verdict in verdicts)) or look == len(rule.interim_analyses):
            return verdicts, seeds * len(arms)
    raise ValueError("the rule has no looks; name them")


def sites_with(verdicts: Sequence[Verdict], verdict: str) -> frozenset[str]:
    """Return the sites with a verdict."""
    return frozenset(one.site for one in verdicts if one.verdict == verdict)


def ranked(surface: Surface, error: float, rng: np.random.Generator) -> tuple[str, ...]:
    """Rank the sites as a screening does whose estimates err by so many noises of one run."""
    guess = {site: gain + error * rng.standard_normal() for site, gain in surface.gain.items()}
    return tuple(sorted(guess, key=lambda site: -guess[site]))


def with_gains(surface: Surface, gains: Sequence[float]) -> Surface:
    """Return the surface with other gains, in the order of its sites."""
    return replace(surface, gain=dict(zip(surface.gain, gains, strict=True)))


def _noise(count: int, tails: float, rng: np.random.Generator) -> Array:
    if math.isinf(tails):
        return rng.standard_normal(count)
    return rng.standard_t(tails, count) * math.sqrt((tails - 2) / tails)


@lru_cache
def _shares(scenes: int) -> Array:
    return drawn_counts(scenes) / scenes


@lru_cache
def _columns(have: tuple[Arm, ...], want: tuple[Arm, ...], of: int, seeds: int) -> NDArray[np.int64]:
    return np.array([have.index(arm) * of + seed for arm in want for seed in range(seeds)])


@lru_cache
def _table(
    sites: tuple[str, ...], arms: tuple[Arm, ...], seeds: tuple[int, ...], look: int, looks: tuple[int, ...]
) -> DesignTable:
    trials = tuple(
        TrialRow(f"{index}-s{seed}", seed, arm) for index, arm in enumerate(arms) for seed in seeds
    )
    return DesignTable(sites, trials, (), look=look, interim_analyses=looks)
