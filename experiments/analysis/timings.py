"""The times of a stopwatch run: rows in, complete rounds out.

A stopwatch visits plans in rounds, each in one process: ``step`` of a row is the round, ``draw`` the place
of the visit in it. A round visits every plan once, and the baseline twice.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.row_checks import refuse_mixtures
from experiments.recipes.decision_rule import AnalysisError
from experiments.recipes.factorial import Arm, level_of
from pipeline.config.plan import Plan
from pipeline.metrics.rows import Row, select

Array = NDArray[np.float64]

METRICS = {"training": "stopwatch/training_own", "inference": "stopwatch/inference_own"}
"""Kind of step, a training step or a detection at batch 1 -> metric of what follows the trunk in it; ms."""
TRUNK_METRICS = {"training": "stopwatch/training_trunk", "inference": "stopwatch/inference_trunk"}
"""Kind of step -> metric of what all plans compute alike, once a round; ms. A step takes both together."""


@dataclass(frozen=True)
class Visit:
    """One timed step of each kind that is priced.

    Attributes:
        arm: level per site.
        log_ms: logarithm of the time; of several kinds of step, their weighted mean.
        place: in the round, from 0; of several kinds, their weighted mean.
        again: whether the round visited the same plan before: the baseline, for the A/A check.
    """

    arm: Arm
    log_ms: float
    place: float
    again: bool


@dataclass(frozen=True)
class Timings:
    """The complete rounds of a stopwatch run.

    Attributes:
        sites: the factors.
        terms: (site, treatment) of which the visits tell the price.
        visits: all visits, round by round.
        rounds: (visits,) index of the round, from 0 without gaps.
    """

    sites: tuple[str, ...]
    terms: tuple[tuple[str, str], ...]
    visits: tuple[Visit, ...]
    rounds: NDArray[np.int64]

    @property
    def num_rounds(self) -> int:
        """How many complete rounds there are."""
        return int(self.rounds.max()) + 1 if len(self.rounds) else 0

    @property
    def treated(self) -> Array:
        """(visits, terms): 1 where the visit has the term's treatment at the term's site, else 0."""
        where = {site: index for index, site in enumerate(self.sites)}
        cells = [[visit.arm[where[site]] == level for site, level in self.terms] for visit in self.visits]
        return np.array(cells, dtype=float).reshape(len(self.visits), len(self.terms))


def read_timings(
    rows: Iterable[Row],
    sites: Sequence[str],
    treatments: Sequence[str],
    weights: Mapping[str, float] | None = None,
) -> Timings:
    """Take the complete rounds from the rows of a stopwatch.

    With several kinds of step the log time is their weighted mean, so that a price is the weighted geometric
    mean of theirs. A kind visits the plans of a round in an order of its own.

    Args:
        rows: of one stopwatch run.
        sites: the factors.
        treatments: levels that are compared with the baseline.
        weights: kind of step (see ``METRICS``) -> its weight; they add up to one. None: training alone.

    Raises:
        AnalysisError: no rows, rows of unequal circumstances, or a time that is not positive.
    """
    weights = weights or {"training": 1.0}
    rows = list(rows)
    by_kind = {kind: _whole_steps(rows, kind) for kind in weights}
    refuse_mixtures(
        [row for of_kind in by_kind.values() for of_round in of_kind.values() for row in of_round]
    )
    common = sorted(set.intersection(*(set(of_kind) for of_kind in by_kind.values())))
    rounds = [_visits({k: of_kind[i] for k, of_kind in by_kind.items()}, weights, sites) for i in common]
    plans = [Counter(visit.arm for visit in round_) for round_ in rounds]
    largest = max(plans, key=lambda counted: counted.total(), default=Counter())
    complete = [visits for visits, counted in zip(rounds, plans, strict=True) if counted == largest]
    seen = {(site, level) for arm in largest for site, level in zip(sites, arm, strict=True)}
    return Timings(
        tuple(sites),
        tuple((site, level) for site in sites for level in treatments if (site, level) in seen),
        tuple(visit for visits in complete for visit in visits),
        np.repeat(np.arange(len(complete)), [len(visits) for visits in complete]),
    )


def _whole_steps(rows: Sequence[Row], kind: str) -> dict[int, list[Row]]:
    """Return round -> its visits in order, with the time of the round's trunk added."""
    trunk = {index: of_round[0].value for index, of_round in _ordered(rows, TRUNK_METRICS[kind]).items()}
    own = _ordered(rows, METRICS[kind])
    if not own:
        raise AnalysisError(f"the stopwatch has no {METRICS[kind]}; run `biaswise study time`")
    return {
        index: [replace(row, value=row.value + trunk.get(index, 0.0)) for row in of_round]
        for index, of_round in own.items()
    }


def _ordered(rows: Sequence[Row], metric: str) -> dict[int, list[Row]]:
    """Return round -> its rows of a metric, in the order of the visits."""
    by_round: dict[int, list[Row]] = defaultdict(list)
    for row in select(rows, metric=metric):
        if not row.value > 0:
            raise AnalysisError(
                f"the stopwatch has a time of {row.value:g} ms ({metric}, round {row.step}); expected a "
                f"positive one; run `biaswise study time` again"
            )
        by_round[row.step].append(row)
    return {index: sorted(of_round, key=lambda row: row.draw or 0) for index, of_round in by_round.items()}


def _visits(
    by_kind: Mapping[str, Sequence[Row]], weights: Mapping[str, float], sites: Sequence[str]
) -> list[Visit]:
    """Return the visits of a round whose plan every kind of step has timed."""
    timed: dict[tuple[Arm, int], dict[str, Row]] = defaultdict(dict)
    for kind, rows in by_kind.items():
        times: Counter[Arm] = Counter()
        for row in rows:
            arm = _levels(row.plan, tuple(sites))
            timed[arm, times[arm]][kind] = row
            times[arm] += 1
    return [
        Visit(
            arm,
            sum(weights[kind] * math.log(row.value) for kind, row in of_visit.items()),
            sum(weights[kind] * (row.draw or 0) for kind, row in of_visit.items()),
            again=nth > 0,
        )
        for (arm, nth), of_visit in timed.items()
        if len(of_visit) == len(weights)
    ]


@lru_cache(maxsize=4096)
def _levels(plan: str, sites: tuple[str, ...]) -> Arm:
    """Return the level per site; a stopwatch visits few plans, each often."""
    choices = dict(Plan.parse(plan).choices)
    if missing := [site for site in sites if site not in choices]:
        raise AnalysisError(f"a plan of the stopwatch does not name {', '.join(missing)}")
    return tuple(level_of(choices[site]) for site in sites)
