"""Results of the best plans and of none on seeds that did not choose them.

The trials have a folder of their own, ``confirmation/trials``, because no verdict may use them: they test
the plans that the verdicts put first. Gains are paired by seed.

Two fresh seeds leave one degree of freedom, and an interval of 12.7 noises. But the noise of a training was
estimated by the study already, with more. It serves as the prior of a moderated variance, as in limma
(Smyth, Statistical Applications in Genetics and Molecular Biology 3, 2004, section 3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, variance

from scipy.special import stdtrit

from experiments.analysis.decide import Evidence
from experiments.analysis.recommend import THROUGHPUT
from experiments.analysis.row_checks import final_values, one_plan_each, typical_values
from experiments.recipes.decision_rule import AnalysisError
from experiments.recipes.factorial import Arm, level_of
from pipeline.metrics.rows import Row

FOLDER = "confirmation"
"""Folder of a study that holds its confirmation: ``trials/<trial>/rows.jsonl``, as the study itself does."""


@dataclass(frozen=True)
class Confirmed:
    """Results of one plan on fresh seeds.

    Attributes:
        levels: a level per site.
        accuracy: mean of the rule's metric, points.
        samples_per_s: mean training throughput; NaN if it was not measured.
        seeds: trials that ended with a finite metric.
        gain, low, high: over the baseline everywhere, paired by seed, points; Student's interval at the
            rule's confidence, for this plan by itself, with the study's noise as prior; NaN unless a seed
            has both this plan and the baseline.
    """

    levels: Arm
    accuracy: float
    samples_per_s: float
    seeds: int
    gain: float = math.nan
    low: float = math.nan
    high: float = math.nan


def confirm(rows: Sequence[Row], evidence: Evidence) -> tuple[Confirmed, ...]:
    """Compare the plans of a confirmation, the most accurate first.

    Args:
        rows: of the confirmation.
        evidence: of the study; its sites, rule and seeds.

    Raises:
        AnalysisError: a seed of the study is used again, or a trial has several plans.
    """
    table, rule = evidence.table, evidence.rule
    plans = one_plan_each(rows)
    if used := sorted({seed for _, seed in plans.values()} & set(table.seeds)):
        raise AnalysisError(
            f"seed {', '.join(map(str, used))} of the confirmation is one of those that chose the plan; "
            f"confirm with others"
        )
    values, speeds = final_values(rows, rule.metric, rule.condition), typical_values(rows, THROUGHPUT)
    by_arm: dict[Arm, dict[int, tuple[float, float]]] = {}
    for trial, (plan, seed) in plans.items():
        levels = tuple(level_of(plan[site]) for site in table.sites)
        if math.isfinite(values.get(trial, math.nan)):
            by_arm.setdefault(levels, {})[seed] = (100 * values[trial], speeds.get(trial, math.nan))
    baseline = by_arm.get((table.baseline,) * len(table.sites), {})
    prior = Prior(2 * evidence.noise**2, evidence.residual_df)  # a difference of two trainings
    confirmed = [
        _compare(levels, trials, baseline, prior, rule.confidence) for levels, trials in by_arm.items()
    ]
    return tuple(sorted(confirmed, key=lambda one: -one.accuracy))


@dataclass(frozen=True)
class Prior:
    """What is known of a variance before, as if from so many degrees of freedom.

    Attributes:
        variance: of one difference, points squared.
        df: degrees of freedom from which it was estimated.
    """

    variance: float
    df: float

    def moderated(self, variance: float, df: float) -> tuple[float, float]:
        """Return the variance and the degrees of freedom of both together (Smyth 2004, section 3)."""
        together = self.df + df
        return (self.df * self.variance + df * variance) / together, together


def _compare(
    levels: Arm,
    trials: dict[int, tuple[float, float]],
    baseline: dict[int, tuple[float, float]],
    prior: Prior,
    confidence: float,
) -> Confirmed:
    accuracy = fmean(value for value, _ in trials.values())
    speeds = [speed for _, speed in trials.values() if speed > 0]
    whole = Confirmed(levels, accuracy, fmean(speeds) if speeds else math.nan, len(trials))
    pairs = [trials[seed][0] - baseline[seed][0] for seed in sorted(trials.keys() & baseline.keys())]
    if not pairs or trials is baseline:
        return whole
    gain = fmean(pairs)
    squared, df = prior.moderated(variance(pairs) if len(pairs) > 1 else 0.0, len(pairs) - 1)
    half = float(stdtrit(df, (1 + confidence) / 2)) * math.sqrt(squared / len(pairs))
    return replace(whole, gain=gain, low=gain - half, high=gain + half)
