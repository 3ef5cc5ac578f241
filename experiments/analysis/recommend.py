"""Which plan to use: the settled one, the best guess, and what each would have to cost to pay.

The settled plan treats the sites that PAY without a reserve, and only counts if its own net gain, the fixed
price included, is certainly above zero; "no bias" is settled if every plan certainly nets less than nothing.
The best guess has the largest expected net gain, effects shrunk (``decision.shrinkage``), because some plan
must be used. No bias anywhere is a candidate in both.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from scipy.special import stdtrit

from experiments.analysis.decide import Evidence
from experiments.analysis.decision.break_even import BreakEven, Estimate, break_even
from experiments.analysis.decision.choice import by_utility, settled_plan
from experiments.analysis.decision.plan_net import (
    PlanNets,
    joint_plan_quantile,
    no_bias_wins,
    predict_plans,
)
from experiments.analysis.design_table import DesignTable
from experiments.analysis.price import free_of_charge
from experiments.analysis.row_checks import final_values, typical_values
from experiments.recipes.factorial import Arm, level_of
from pipeline.config.plan import Choice, Plan
from pipeline.metrics.rows import Row

THROUGHPUT = "train_samples_per_s"
MOST_PLANS = 2**16
"""Plans that are compared; with more (over sixteen layers) only those that ran are."""


@dataclass(frozen=True)
class Candidate:
    """What one plan is predicted to gain and cost, against the baseline everywhere.

    Attributes:
        levels: a level per site.
        gain: points of the rule's metric.
        half_width: of the gain's interval, at the rule's confidence, by itself.
        slowdown_percent: growth of the step time, the fixed price included.
        price: what that slow-down must earn, points.
        net: gain minus price, points.
        net_low, net_high: bounds of the net gain. ``net_low`` holds for all plans together, so that it does
            for the plan that looks best; ``net_high`` holds for this plan.
        utility: the expected net gain, effects shrunk; plans are ranked by it.
        break_even: points per per cent of slow-down up to which the plan pays.
    """

    levels: Arm
    gain: float
    half_width: float
    slowdown_percent: float
    price: float
    net: float
    net_low: float
    net_high: float
    utility: float
    break_even: BreakEven


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
        best: the best guess.
        settled: the plan that certainly nets something; None if there is none.
        no_bias_wins: whether certainly no plan does.
        plan: the best guess as a whole plan, every site of the model named.
        accuracy: predicted for the best guess, points.
        samples_per_s: predicted; NaN if no trial measured throughput.
        measured: what its own trials of the study measured; None if none ran it.
        baseline: what the baseline's trials measured; None if none ran it.
        open_sites: sites it treats whose verdict is not PAYS.
        candidates: all plans, best guess first.
    """

    best: Candidate
    settled: Candidate | None
    no_bias_wins: bool
    plan: Plan
    accuracy: float
    samples_per_s: float
    measured: Measured | None
    baseline: Measured | None
    open_sites: tuple[str, ...]
    candidates: tuple[Candidate, ...]


def recommend(rows: Sequence[Row], evidence: Evidence) -> Recommendation:
    """Choose the plan with the largest expected net gain; of equals the one with the fewest treated sites.

    Args:
        rows: the rows that the evidence was drawn from.
        evidence: effects, prices and interactions.

    Raises:
        ValueError: the evidence has no price, so no plan has a net gain.
    """
    if evidence.price is None:
        raise ValueError("evidence without a price recommends no plan")
    table = evidence.table
    nets = _nets(list(all_plans(table)), evidence)
    unordered = _candidates(nets, evidence)
    candidates = [unordered[plan] for plan in by_utility(nets, table)]
    best, settled = candidates[0], settled_plan(nets, evidence.verdicts, table, evidence.rule)
    measured = measured_arms(rows, evidence)
    accuracy, speed = _levels_of_trials(measured, evidence)
    alone = {(v.site, v.treatment) for v in evidence.verdicts if v.pays_alone}
    treated = [t for t in zip(table.sites, best.levels, strict=True) if t[1] != table.baseline]
    return Recommendation(
        best=best,
        settled=None if settled is None else unordered[settled],
        no_bias_wins=no_bias_wins(nets, table, evidence.rule),
        plan=_whole_plan(best.levels, table, rows),
        accuracy=accuracy + best.gain,
        samples_per_s=speed / (1 + training_growth([best.levels], evidence)[0]),
        measured=measured.get(best.levels),
        baseline=measured.get((table.baseline,) * len(table.sites)),
        open_sites=tuple(site for site, level in treated if (site, level) not in alone),
        candidates=tuple(candidates),
    )


def predict(levels: Arm, evidence: Evidence) -> Candidate:
    """Predict what a plan gains and costs; without a price it costs nothing."""
    (candidate,) = _candidates(_nets([levels], evidence), evidence)
    return candidate


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


def _nets(plans: Sequence[Arm], evidence: Evidence) -> PlanNets:
    price = evidence.price or free_of_charge(evidence.table)
    return predict_plans(plans, evidence.table, evidence.gain, price, evidence.rule)


def _candidates(nets: PlanNets, evidence: Evidence) -> list[Candidate]:
    rule, table = evidence.rule, evidence.table
    joint = joint_plan_quantile(nets, table, rule)
    wide = (1 + rule.confidence) / 2
    candidates = []
    for i, levels in enumerate(nets.levels):
        gain = Estimate(float(nets.gain[i]), float(nets.gain_error[i]), float(nets.gain_df[i]))
        slow = Estimate(float(nets.slowdown[i]), float(nets.slowdown_error[i]), float(nets.slowdown_df[i]))
        net, error = float(nets.net[i]), float(nets.error[i])
        candidates.append(
            Candidate(
                levels,
                gain.value,
                _reach(gain.df, wide) * gain.error if gain.error else 0.0,
                slow.value,
                float(nets.price[i]),
                net,
                net - joint * error,
                net + _reach(float(nets.df[i]), wide) * error if error else net,
                float(nets.shrunk[i] - nets.price[i]),
                break_even(gain, slow, rule.confidence),
            )
        )
    return candidates


def _reach(df: float, probability: float) -> float:
    return float(stdtrit(df, probability))


def all_plans(table: DesignTable) -> Iterable[Arm]:
    """Return all combinations of the levels that were estimated."""
    options = [(table.baseline, *(lv for s, lv in table.terms if s == site)) for site in table.sites]
    if math.prod(map(len, options)) <= MOST_PLANS:
        return product(*options)
    return {trial.levels for trial in table.trials} | {(table.baseline,) * len(table.sites)}


def _levels_of_trials(measured: dict[Arm, Measured], evidence: Evidence) -> tuple[float, float]:
    """Return accuracy and throughput at the baseline, averaged over the estimates from all arms.

    An arm's estimate is what it measured minus what its treatments are predicted to add.
    """
    arms = list(measured)
    if not arms:
        return math.nan, math.nan
    gains = _nets(arms, evidence).gain
    growths = training_growth(arms, evidence)
    weights = [m.seeds for m in measured.values()]
    accuracy = sum(
        w * (m.accuracy - gain) for w, m, gain in zip(weights, measured.values(), gains, strict=True)
    ) / sum(weights)
    logs = [
        (w, math.log(m.samples_per_s * (1 + growth)))
        for w, m, growth in zip(weights, measured.values(), growths, strict=True)
        if m.samples_per_s > 0
    ]
    speed = math.exp(sum(w * x for w, x in logs) / sum(w for w, _ in logs)) if logs else math.nan
    return float(accuracy), speed


def training_growth(plans: Sequence[Arm], evidence: Evidence) -> list[float]:
    """Return the growth of a training step's time under each plan, a fraction."""
    price = evidence.price_by_step.get("training") or free_of_charge(evidence.table)
    nets = predict_plans(plans, evidence.table, evidence.gain, price, evidence.rule)
    return [float(slowdown) / 100 for slowdown in nets.slowdown]


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
