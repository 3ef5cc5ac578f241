"""How often a small study names the same layers as the full grid, by the size of the effects."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.analysis.verdicts import PAYS, UNDECIDED, Verdict
from experiments.calibration.designs import AGAIN, APART, GRID, LEAN, MISLED, ORDERED, SCREENED, SITES, Study
from experiments.calibration.error_rates import SCREENING_ERROR, Tally, sites_with
from experiments.calibration.judging import judge_look, judge_study
from experiments.calibration.simulation import ranked, train
from experiments.calibration.truth import Truth


@dataclass(frozen=True)
class Agreement:
    """How a study compares with the full grid, on the same trainings unless the study's name excludes it.

    Attributes:
        study: the study that is compared.
        effect: the planted effect, noises of one run: as a text for tables.
        confidence: the rule's.
        tally: ``agrees``, ``false PAYS``, ``missed PAYS`` (of the study), ``grid false PAYS``.
    """

    study: Study
    effect: str
    confidence: float
    tally: Tally


def design_efficiency(effects: tuple[float, float], confidence: float, studies: int) -> tuple[Agreement, ...]:
    """Compare small studies, and a second full grid, with the full grid.

    Every layer has no effect with probability one half, else one whose size is drawn evenly from
    ``effects``; three of four are gains.

    Args:
        effects: smallest and largest effect.
        confidence: of the rule of every study.
        studies: number of simulated studies.
    """
    tallies = {study: Tally() for study in (LEAN, APART, ORDERED, MISLED, SCREENED, AGAIN)}
    for draw in range(studies):
        rng = np.random.default_rng([draw, *(int(100 * e) for e in effects)])
        truth = _random_truth(effects, rng)
        trained = train(truth, GRID.arms, (0, 1, 2), rng)
        grid = judge_look(trained, GRID.arms, 1, GRID.rule(confidence)).verdicts
        order = ranked(truth, SCREENING_ERROR, rng)
        fresh = train(truth, GRID.arms, (0, 1, 2), rng)  # other trainings, other scenes
        orders = {SCREENED: order, ORDERED: order, MISLED: ranked(truth, 2 * SCREENING_ERROR, rng)}
        for study, tally in tallies.items():
            rule = study.rule(confidence, orders.get(study, ()))
            judged = judge_study(fresh if study in (AGAIN, APART) else trained, study.arms, rule)
            _compare(tally, judged.verdicts if judged else (), grid, truth)
            tally.trials += judged.trials if judged else study.most_trials
    spelled = f"{effects[0]:g}" if effects[0] == effects[1] else f"{effects[0]:g} to {effects[1]:g}"
    return tuple(Agreement(study, spelled, confidence, tally) for study, tally in tallies.items())


def by_size(size: float, most_seeds: int, studies: int) -> tuple[tuple[float, int, Tally], ...]:
    """Return, per number of seeds of the fraction, agreement with the full grid and UNDECIDED.

    Each number of seeds is a study of its own with one look. Half of the layers have an effect of the size.
    """
    tallies = {seeds: Tally() for seeds in range(1, most_seeds + 1)}
    for draw in range(studies):
        rng = np.random.default_rng([draw, int(1000 * size)])
        truth = _random_truth((size, size), rng)
        trained = train(truth, GRID.arms, tuple(range(max(3, most_seeds))), rng)
        grid = judge_look(trained, GRID.arms, 1, GRID.rule()).verdicts
        for seeds, tally in tallies.items():
            study = replace(LEAN, interim_analyses=(seeds,))
            verdicts = judge_look(trained, LEAN.arms, 1, study.rule()).verdicts
            _compare(tally, verdicts, grid, truth)
            tally.trials += study.most_trials
    return tuple((size, seeds, tally) for seeds, tally in tallies.items())


def _random_truth(effects: tuple[float, float], rng: np.random.Generator) -> Truth:
    gains = rng.uniform(*effects, len(SITES)) * np.where(rng.random(len(SITES)) < 0.75, 1, -1)
    present = rng.random(len(SITES)) < 0.5
    net = {site: float(g * on) for site, g, on in zip(SITES, gains, present, strict=True)}
    return Truth(net, scenes=150, times=None)


def _compare(tally: Tally, verdicts: Sequence[Verdict], grid: Sequence[Verdict], truth: Truth) -> None:
    good = {site for site, gain in truth.net.items() if gain > 0}
    pays, theirs = sites_with(verdicts, PAYS), sites_with(grid, PAYS)
    events = {
        "agrees": pays == theirs,
        "false PAYS": bool(pays - good),
        "missed PAYS": bool(good - pays),
        "grid false PAYS": bool(theirs - good),
        "grid missed PAYS": bool(good - theirs),
        "right": pays == good,
    }
    tally.studies += 1
    tally.counts.update(event for event, happened in events.items() if happened)
    tally.verdicts += len(verdicts)
    tally.undecided += sum(v.verdict == UNDECIDED for v in verdicts)
