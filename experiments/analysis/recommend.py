"""The plan with the best utility, predicted from the effects, measured where it ran.

The utility of a plan is its net gain: predicted gain minus the price of its predicted slow-down. The plan
is chosen by point estimates, undecided layers included, because some plan must be used. How sure the
choice is, the verdicts tell: ``Recommendation.open_sites`` names the treated sites that are not settled.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from experiments.analysis.decide import Evidence
from experiments.analysis.design_table import DesignTable
from experiments.analysis.row_checks import final_values, typical_values
from experiments.analysis.verdicts import PAYS
from experiments.recipes.factorial import Arm, level_of
from pipeline.config.plan import Choice, Plan
from pipeline.metrics.rows import Row

THROUGHPUT = "train_samples_per_s"
MOST_PLANS = 2**16
"""Plans that are compared; with more (over sixteen layers) only those that ran are."""


@dataclass(frozen=True)
class Candidate:
    """The predicted gain and price of one plan, against the baseline everywhere.

    Attributes:
        levels: a level per site.
        gain: points of the rule's metric.
        half_width: of the gain's interval: those of its terms, added in quadrature, which is exact
            where the arms are orthogonal.
        slowdown_percent: growth of the step time.
        price: what that slow-down must earn, points.
    """

    levels: Arm
    gain: float
    half_width: float
    slowdown_percent: float
    price: float

    @property
    def utility(self) -> float:
        """Gain minus price, points."""
        return self.gain - self.price


@dataclass(frozen=True)
class Measured:
    """Mean results of the trials of one plan.

    Attributes:
        accuracy: mean of the rule's metric, points.
        samples_per_s: mean training throughput; NaN if it was not measured.
        seeds: how many.
    """

    accuracy: float
    samples_per_s: float
    seeds: int


@dataclass(frozen=True)
class Recommendation:
    """The plan to use.

    Attributes:
        best: the plan as levels of the factors.
        plan: the whole plan, every site of the model named.
        accuracy: predicted, points.
        samples_per_s: predicted; NaN if no trial measured throughput.
        measured: what its own trials of the study measured; None if none ran it.
        baseline: what the baseline's trials measured; None if none ran it.
        open_sites: sites it treats whose verdict is not PAYS.
        candidates: all plans, best first.
    """

    best: Candidate
    plan: Plan
    accuracy: float
    samples_per_s: float
    measured: Measured | None
    baseline: Measured | None
    open_sites: tuple[str, ...]
    candidates: tuple[Candidate, ...]


def recommend(rows: Sequence[Row], evidence: Evidence) -> Recommendation:
    """Choose the plan with the best utility; of equals the one with the fewest treated sites.

    Args:
        rows: the rows that the evidence was drawn from.
        evidence: effects, prices and interactions.
    """
    table, rule = evidence.table, evidence.rule
    candidates = [predict(levels, evidence) for levels in _plans(table)]
    candidates.sort(key=lambda c: (-c.utility, num_treated(c.levels, table)))
    best = candidates[0]
    measured = measured_arms(rows, evidence)
    accuracy, speed = _levels_of_trials(measured, evidence)
    settled = {(v.site, v.treatment or rule.treatments[0]) for v in evidence.verdicts if v.verdict == PAYS}
    treated = [
        (s, level) for s, level in zip(table.sites, best.levels, strict=True) if level != table.baseline
    ]
    return Recommendation(
        best=best,
        plan=_whole_plan(best.levels, table, rows),
        accuracy=accuracy + best.gain,
        samples_per_s=speed / (1 + best.slowdown_percent / 100),
        measured=measured.get(best.levels),
        baseline=measured.get((table.baseline,) * len(table.sites)),
        open_sites=tuple(site for site, level in treated if (site, level) not in settled),
        candidates=tuple(candidates),
    )


def predict(levels: Arm, evidence: Evidence) -> Candidate:
    """Predict what a plan gains and costs: the sum of its sites' effects and of the pairs' interactions.

    If the design cannot tell the interactions of two pairs apart, neither counts.
    """
    table, rule = evidence.table, evidence.rule
    chosen = dict(zip(table.sites, levels, strict=True))
    terms = [v for v in evidence.verdicts if chosen[v.site] == (v.treatment or rule.treatments[0])]
    gain = sum(v.effect for v in terms)
    variance = sum((v.effect - v.low) ** 2 for v in terms)
    for pair in evidence.interactions:
        if len(pair.pairs) == 1:
            a, b = (0.5 if chosen[site] != table.baseline else -0.5 for site in pair.pairs[0])
            weight = a * b - 0.25  # against the baseline everywhere; the model's columns are centred
            gain += weight * pair.effect
            variance += (weight * (pair.effect - pair.low)) ** 2 if math.isfinite(pair.low) else 0.0
    growth = math.prod(1 + v.slowdown_percent / 100 for v in terms) - 1
    price = 100 * growth * rule.price_points_per_percent
    return Candidate(levels, gain, math.sqrt(variance), 100 * growth, price)


def measured_arms(rows: Sequence[Row], evidence: Evidence) -> dict[Arm, Measured]:
    """Return levels -> what the arm's trials measured; diverged and stopped trials are left out."""
    table, rule = evidence.table, evidence.rule
    values = final_values(rows, rule.metric, rule.condition)
    speeds = typical_values(rows, THROUGHPUT)
    by_arm: dict[Arm, list[tuple[float, float]]] = {}
    for trial in table.trials:
        value = values.get(trial.name, math.nan)
        if math.isfinite(value) and trial.name not in table.diverged and trial.name not in table.stopped:
            by_arm.setdefault(trial.levels, []).append((100 * value, speeds.get(trial.name, math.nan)))
    return {
        levels: Measured(_mean(a for a, _ in pairs), _mean(s for _, s in pairs), len(pairs))
        for levels, pairs in by_arm.items()
    }


def pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Return the names of the points (speed, accuracy) that no other beats in both, slowest first."""
    front: list[str] = []
    for name, (_, accuracy) in sorted(points.items(), key=lambda item: (-item[1][0], -item[1][1])):
        if not front or accuracy > points[front[-1]][1]:
            front.append(name)
    return front[::-1]


def num_treated(levels: Arm, table: DesignTable) -> int:
    """Count the sites that are not at the baseline."""
    return sum(level != table.baseline for level in levels)


def _plans(table: DesignTable) -> Iterable[Arm]:
    """Return all combinations of the levels that were estimated."""
    options = [(table.baseline, *(lv for s, lv in table.terms if s == site)) for site in table.sites]
    if math.prod(map(len, options)) <= MOST_PLANS:
        return product(*options)
    return {trial.levels for trial in table.trials}


def _levels_of_trials(measured: dict[Arm, Measured], evidence: Evidence) -> tuple[float, float]:
    """Return accuracy and throughput at the baseline, averaged over the estimates from all arms.

    An arm's estimate is what it measured minus what its treatments are predicted to add.
    """
    seen = {levels: predict(levels, evidence) for levels in measured}
    weights = {levels: m.seeds for levels, m in measured.items()}
    total = sum(weights.values()) or 1
    accuracy = sum(weights[a] * (m.accuracy - seen[a].gain) for a, m in measured.items()) / total
    logs = [
        (weights[a], math.log(m.samples_per_s * (1 + seen[a].slowdown_percent / 100)))
        for a, m in measured.items()
        if m.samples_per_s > 0
    ]
    speed = math.exp(sum(w * x for w, x in logs) / sum(w for w, _ in logs)) if logs else math.nan
    return accuracy, speed


def _whole_plan(levels: Arm, table: DesignTable, rows: Sequence[Row]) -> Plan:
    """Return the plan with these levels; each level keeps the implementation that it ran with."""
    plans = [Plan.parse(text) for text in sorted({row.plan for row in rows})]
    ran: dict[tuple[str, str], Choice] = {
        (site, level_of(choice)): choice for plan in plans for site, choice in plan.choices
    }
    wanted = dict(zip(table.sites, levels, strict=True))
    return Plan(tuple((s, ran[s, wanted[s]] if s in wanted else choice) for s, choice in plans[0].choices))


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
