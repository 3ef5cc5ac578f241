"""What a biased step costs, from step times that one process measured in turn.

The model is ``log time = round + place in the round + fixed [any site biased] + sum of sites (+ pairs)``. The
first biased site also pays for what any bias needs (AQR and the generator), so that cost is a coefficient of
its own: the fixed price. The baseline's second visit in a round is the A/A check: equal plans must take
equal times.

One slow step must not move a price, hence Huber's regression; its covariance is by rounds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from experiments.analysis.model.huber import fit_huber, within_rounds
from experiments.analysis.timings import Timings
from experiments.recipes.decision_rule import AnalysisError

Array = NDArray[np.float64]

FEWEST_ROUNDS = 3
"""Below, the covariance has one degree of freedom and says nothing."""
MOST_ERRORS = 3.0
"""The A/A difference may be this many standard errors away from zero; of few rounds as many more as make
Student's distribution as improbable."""


@dataclass(frozen=True)
class Price:
    """What biased sites cost, as growth of the logarithm of the step time.

    Attributes:
        terms: (site, treatment), in the order of their coefficients.
        effect: (1 + terms + pairs,) the fixed price, the sites' own prices, the pairs'.
        covariance: (1 + terms + pairs, the same).
        df: degrees of freedom of the covariance.
        fixed_apart: whether the design tells the fixed price from the sites' own. If not, it is 0 here, and
            every site's price holds it.
        pairs: indices of the two terms, for every pair with a coefficient of its own.
        rounds: how many rounds were timed; 0 if the times are those of the trials.
        noise: standard deviation of the logarithm of one step's time, what a round shares taken out.
        again: A/A: log difference between the baseline's second and first visit in a round.
        again_error: its standard error.
    """

    terms: tuple[tuple[str, str], ...]
    effect: Array
    covariance: Array
    df: float
    fixed_apart: bool = True
    pairs: tuple[tuple[int, int], ...] = ()
    rounds: int = 0
    noise: float = math.nan
    again: float = math.nan
    again_error: float = math.nan

    @property
    def error(self) -> Array:
        """Standard errors of the coefficients."""
        return np.sqrt(np.diag(self.covariance))

    @property
    def percent(self) -> Array:
        """The coefficients as growth of the step time, per cent."""
        return np.asarray(100 * np.expm1(self.effect))

    @property
    def percent_error(self) -> Array:
        """Standard errors of ``percent``, to first order: d(exp c) = exp(c) dc."""
        return np.asarray(100 * np.exp(self.effect) * self.error)


def fit_price(timings: Timings, pairs: bool = False) -> Price:
    """Fit the price model.

    Args:
        timings: complete rounds.
        pairs: whether pairs of sites get coefficients, if the visited plans can tell them apart.

    Raises:
        AnalysisError: too few rounds, plans that cannot tell the sites apart, no second visit to the
            baseline, or an A/A difference beyond ``MOST_ERRORS`` standard errors.
    """
    if timings.num_rounds < FEWEST_ROUNDS:
        raise AnalysisError(
            f"the stopwatch has {timings.num_rounds} complete rounds, and a price needs {FEWEST_ROUNDS}; "
            f"run `biaswise study time` for longer"
        )
    matrix, apart, chosen = _matrix(timings, pairs)
    log_ms = np.array([visit.log_ms for visit in timings.visits])
    places = np.array([visit.place for visit in timings.visits])
    again, again_error = _compare_visits(matrix, log_ms, places, timings)
    drift = places - places.mean()  # a machine that warms up during a round is no noise
    fit = fit_huber(np.column_stack([matrix, drift]), log_ms, timings.rounds)
    effect, covariance = fit.effect[:-1], fit.covariance[:-1, :-1]
    if not apart:
        effect, covariance = np.insert(effect, 0, 0.0), np.pad(covariance, ((1, 0), (1, 0)))
    return Price(
        timings.terms,
        effect,
        covariance,
        timings.num_rounds - 1.0,
        apart,
        chosen,
        timings.num_rounds,
        fit.noise,
        again,
        again_error,
    )


def widest_half_width(price: Price, points_per_percent: float, confidence: float = 0.95) -> float:
    """Return the largest half-width of the sites' own prices, points; the fixed price does not count.

    Args:
        price: the fitted model.
        points_per_percent: what one per cent of step time must earn.
        confidence: of each interval by itself.
    """
    errors = price.percent_error[1 : 1 + len(price.terms)]
    return float(points_per_percent * stdtrit(price.df, (1 + confidence) / 2) * errors.max())


def price_columns(treated: Array, pairs: Sequence[tuple[int, int]] = ()) -> Array:
    """Return the columns of the price model (plans, 1 + terms + pairs): any, sites, pairs.

    All are 0 at the baseline. A pair's column is centred, so that a site's coefficient is its price averaged
    over the other site.

    Args:
        treated: (plans, terms) 1 where a plan has the term's treatment at its site, else 0.
        pairs: indices of two terms each.
    """
    halves = treated - 0.5
    products = [halves[:, i] * halves[:, j] - 0.25 for i, j in pairs]
    return np.column_stack([treated.max(axis=1, initial=0.0), treated, *products])


def _matrix(timings: Timings, pairs: bool) -> tuple[Array, bool, tuple[tuple[int, int], ...]]:
    """Return the columns that the visits can tell apart, whether the fixed price is one, and the pairs."""
    chosen = tuple(combinations(range(len(timings.terms)), 2)) if pairs else ()
    wide = price_columns(timings.treated, chosen)
    if chosen and not _estimable(wide, timings):
        chosen, wide = (), price_columns(timings.treated)
    if _estimable(wide, timings):
        return wide, True, chosen
    narrow = wide[:, 1:]  # one site, or one site at a time: the first bias is always the only one
    if not timings.terms or not _estimable(narrow, timings):
        raise AnalysisError(
            f"the plans that the stopwatch visited cannot tell the prices of {', '.join(timings.sites)} apart"
        )
    return narrow, False, ()


def _estimable(matrix: Array, timings: Timings) -> bool:
    return bool(np.linalg.matrix_rank(within_rounds(matrix, timings.rounds)) == matrix.shape[1])


def _compare_visits(matrix: Array, log_ms: Array, places: Array, timings: Timings) -> tuple[float, float]:
    """Return the A/A difference of log times and its standard error; refuse what noise does not explain."""
    again = np.array([visit.again for visit in timings.visits], dtype=float)
    if not again.any():
        raise AnalysisError("the stopwatch visits no plan twice in a round; expected the baseline (A/A)")
    fit = fit_huber(np.column_stack([matrix, places - places.mean(), again]), log_ms, timings.rounds)
    difference, error = float(fit.effect[-1]), float(math.sqrt(fit.covariance[-1, -1]))
    if abs(difference) > -stdtrit(timings.num_rounds - 1, ndtr(-MOST_ERRORS)) * error:
        raise AnalysisError(
            f"the baseline's second visit in a round takes {100 * difference:+.2f} ± {100 * error:.2f} % "
            f"(standard error) more than its first, although the plan is the same; run `biaswise study time` "
            f"again on an idle machine"
        )
    return difference, error
