"""The power that ``biaswise study power`` computes, beside that of simulated studies."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.analysis.verdicts import PAYS
from experiments.calibration.designs import LARGE, SMALL, Study
from experiments.calibration.error_rates import sites_with, with_interval
from experiments.calibration.judging import judge_study, price_by_stopwatch
from experiments.calibration.planning.power import ErrorSources, Power
from experiments.calibration.planning.study_size import StudySize
from experiments.calibration.simulation import train
from experiments.calibration.truth import POINTS_PER_PERCENT, StepTimes, Truth

GAINS = (1.0, 1.5, 2.0, 2.5)
"""Net gains of one layer, noises of one run."""


@dataclass(frozen=True)
class Foretold:
    """The power for one layer.

    Attributes:
        design: name of the study.
        gain: net gain of the layer, noises of one run.
        computed: probability that it is told PAYS, by formula.
        simulated: the rate in simulated studies, with its 95 % interval.
    """

    design: str
    gain: float
    computed: float
    simulated: tuple[float, float, float]


def compare_power(
    studies: int,
    designs: Sequence[Study] = (SMALL, LARGE),
    gains: Sequence[float] = GAINS,
) -> tuple[Foretold, ...]:
    """Compute and simulate the power of designs, priced by the stopwatch.

    The same trainings serve all gains of a design.

    Args:
        studies: simulated studies per design and gain.
        designs: the designs.
        gains: the net gains.
    """
    lines: list[Foretold] = []
    for study in designs:
        rule, times = study.rule(), StepTimes()
        size = StudySize(study.name, rule, study.arms, study.interim_analyses)
        found = dict.fromkeys(gains, 0)
        errors = []
        for draw in range(studies):
            price = price_by_stopwatch(times, study.sites, study.arms, draw)
            errors.append(100 * POINTS_PER_PERCENT * price.error[2])
            for gain in gains:
                rng = np.random.default_rng([draw, *study.name.encode()])
                truth = Truth(
                    {site: gain * (index == 1) for index, site in enumerate(study.sites)}, times=times
                )
                judged = judge_study(train(truth, study.arms, rule.seeds, rng), study.arms, rule, price)
                found[gain] += judged is not None and study.sites[1] in sites_with(judged.verdicts, PAYS)
        power = Power(size, ErrorSources(1.0, price=float(np.sqrt(np.mean(np.square(errors))))))
        lines += [
            Foretold(study.name, gain, power.difference(gain), with_interval(found[gain], studies))
            for gain in gains
        ]
    return tuple(lines)
