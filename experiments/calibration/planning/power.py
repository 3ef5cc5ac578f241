"""How probable a verdict is before a study runs: by its design, its seeds and its noise.

A net gain is estimated with a true standard error; the verdict compares it with Student's quantile times an
estimated one. The distribution of the mean squares is known (chi-squared over their degrees of freedom), so
that the probability of a verdict is a mean over it. With one mean square that holds all of the error, this is
the noncentral t distribution: (t(1 - level / 2; df) + t(power)) standard errors are found with that power.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr, stdtrit

from experiments.analysis.alpha_spending import nominal_level
from experiments.analysis.model.mean_squares import MeanSquares
from experiments.calibration.planning.study_size import StudySize

Array = NDArray[np.float64]

QUANTILES = 60
"""Midpoints at which the distribution of a mean square is represented; they agree with the noncentral t to
0.003 from three degrees of freedom on."""
MOST_ERRORS = 1000.0
"""Gains of so many standard errors are found by every study that leaves a degree of freedom."""
DEMO_NOISE = 0.15
"""Noise of one trial of the demo, points of NDS: the larger of two runs (docs/studies/demo/version_0.1)."""
CROWDED_STEP_NOISE = 0.16
"""Noise of the step time of one trial of the demo where two trials share two cores, in log: what a rule that
is priced by trials has to expect."""
NORMAL_95 = 1.96
"""Half-width of a 95 % interval, standard errors."""


@dataclass(frozen=True)
class ErrorSources:
    """What makes an estimated net gain uncertain, each as a standard deviation in points.

    Attributes:
        trial: of one training, of one arm within a seed.
        scenes: of a layer's gain, because the validation scenes are a sample.
        price: of a layer's price.
    """

    trial: float
    scenes: float = 0.0
    price: float = 0.0


def expected_sources(size: StudySize) -> ErrorSources:
    """Return the noise that a study has to expect before anything is measured.

    The price is as exact as the rule asks of the stopwatch, or as the step times of the trials make it.
    """
    rule = size.rule
    if rule.priced_by == "stopwatch":
        price = rule.price_half_width / NORMAL_95 if rule.price_points_per_percent else 0.0
    else:
        of_log = CROWDED_STEP_NOISE * math.sqrt(size.variance_factor)
        price = 100 * rule.price_points_per_percent * of_log
    return ErrorSources(DEMO_NOISE, price=price)


@dataclass(frozen=True)
class Power:
    """What a study of one size can decide.

    Attributes:
        size: the study.
        sources: its noise.
    """

    size: StudySize
    sources: ErrorSources

    def difference(self, net_gain: float) -> float:
        """Return the probability that a layer of this net gain, points, gets the verdict of its sign.

        The layer is tested first by Holm's procedure, at its share of the error probability among all
        layers, at the last look. For unequal layers it is the one that is estimated worst.
        """
        return float(np.mean(ndtr((abs(net_gain) - self._reach) / self._error)))

    def equivalence(self, net_gain: float = 0.0) -> float:
        """Return the probability that a layer of this net gain, points, is told NO DIFFERENCE."""
        free = np.maximum(self.size.rule.equivalence_margin - self._reach, 0.0)
        inside = ndtr((free - net_gain) / self._error) - ndtr((-free - net_gain) / self._error)
        return float(np.mean(inside))

    def smallest_gain(self, power: float) -> float:
        """Return the net gain, points, that is found with this probability."""
        return _root(lambda gain: self.difference(gain) - power, MOST_ERRORS * self._error)

    @property
    def is_judged(self) -> bool:
        """Whether the design leaves something to estimate the noise from, and tells the sites apart."""
        return self.size.residual_df > 0 and self.size.tells_sites_apart

    @property
    def can_decide(self) -> bool:
        """Whether a gain of the margin is found, or its absence shown, in half of such studies at least."""
        margin = self.size.rule.equivalence_margin
        return self.is_judged and max(self.difference(margin), self.equivalence()) >= 0.5

    def in_words(self) -> str:
        """Return what the study can decide at its margin, one or two sentences."""
        margin = f"{self.size.rule.equivalence_margin:g} points"
        seeds = f"{self.size.seeds} seed{'s' if self.size.seeds > 1 else ''}"
        trials = f"{self.size.trials} trials ({len(self.size.arms)} arms, {seeds})"
        if not self.size.tells_sites_apart:
            return f"the arms of {trials} cannot tell the sites apart: the study decides nothing."
        if not self.is_judged:
            return (
                f"{trials} leave no degree of freedom to estimate the noise from: the study decides nothing."
            )
        found, same = self.difference(self.size.rule.equivalence_margin), self.equivalence()
        power = (
            f"{trials} find a net gain of the margin, {margin}, with {100 * found:.0f} % and show with "
            f"{100 * same:.0f} % that there is none."
        )
        return power if self.can_decide else f"{power} The study decides nothing at its margin."

    @property
    def _level(self) -> float:
        """Two-sided level of the layer that Holm's procedure tests first, at the last look."""
        looks = self.size.interim_analyses
        share = round((1 - self.size.rule.confidence) / self.size.num_terms, 12)
        return nominal_level(share, looks, len(looks), self.size.rule.alpha_spending)

    @property
    def _error(self) -> float:
        """True standard error of a net gain, points."""
        of_trials = self.size.variance_factor * self.sources.trial**2
        return math.sqrt(of_trials + self.sources.scenes**2 + self.sources.price**2)

    @cached_property
    def _reach(self) -> Array:
        """Half-widths of the layer's interval that the study may have, equally probable ones, points."""
        squares, df = self._mean_squares
        of_trials = self.size.variance_factor * self.sources.trial**2 * squares
        whole = of_trials + self.sources.scenes**2 + self.sources.price**2
        freedom = df * (whole / of_trials) ** 2  # Satterthwaite; scenes and price are known far better
        return np.asarray(-stdtrit(freedom, self._level / 2) * np.sqrt(whole))

    @property
    def _mean_squares(self) -> tuple[Array, float]:
        """Mean squares that sites' errors may be made of, true noise 1, equally probable; their df."""
        of_seeds, of_rest = self.size.freedom
        if not of_seeds:
            return _mean_square(of_rest), of_rest
        pairs = product(_mean_square(of_seeds), _mean_square(of_rest))
        made = [MeanSquares(seeds, int(of_seeds), rest, int(of_rest)).of_sites for seeds, rest in pairs]
        return np.array([square for square, _ in made]), made[0][1]


def _mean_square(df: float) -> Array:
    """Return quantiles of a mean square of true value 1, equally probable ones."""
    if not df:
        return np.ones(1)
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return np.asarray(2 * gammaincinv(df / 2, at) / df)


def _root(function: Callable[[float], float], most: float) -> float:
    return float(brentq(function, 0.0, most, xtol=1e-6 * most / MOST_ERRORS))
