"""Which trials of a sequential study run next, or why none do.

The answer is a pure function of the rows so far. The verdicts are computed as in the report, at the looks
(interim analyses) that the rule fixed before the first trial. So more looks do not make more verdicts false.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.analysis.decide import Evidence, weigh
from experiments.analysis.decision.levels import shares_spent
from experiments.analysis.design_table import ended_trials
from experiments.recipes.decision_rule import AnalysisError, DecisionRule, ScreeningMissing
from experiments.recipes.factorial import Arm, Design
from pipeline.metrics.rows import Row

SETTLED, SPENT, CONTINUE = "settled", "budget spent", "continue"


@dataclass(frozen=True)
class Budget:
    """What a study may cost.

    Attributes:
        trials: trainings, early-stopped ones included.
        gpu_hours: GPU hours of all of them together.
    """

    trials: int
    gpu_hours: float = math.inf

    def __post_init__(self) -> None:
        """Refuse a budget under which no trial runs."""
        if self.trials < 1 or not self.gpu_hours > 0:
            hours = "" if math.isinf(self.gpu_hours) else f" and {self.gpu_hours:g} GPU hours"
            raise AnalysisError(f"the budget is {self.trials} trials{hours}; expected more than 0")


@dataclass(frozen=True)
class Wave:
    """What to run next.

    Attributes:
        look: number of the look after this wave, from 1; of an ended study, of the last look taken.
        arms_by_seed: (seed, arms) to run, in order; empty if the study has ended.
        state: ``continue``, ``settled`` or ``budget spent``.
        reason: why, in a sentence for people.
        spent: share of the error probability 1 - confidence that has been spent, 0 to 1.
    """

    look: int
    arms_by_seed: tuple[tuple[int, tuple[Arm, ...]], ...]
    state: str
    reason: str
    spent: float = 0.0

    @property
    def num_trials(self) -> int:
        """Number of trials that it adds."""
        return sum(len(arms) for _, arms in self.arms_by_seed)


def next_wave(
    rows: Sequence[Row],
    rule: DecisionRule,
    design: Design,
    budget: Budget,
    gpu_hours: float = 0.0,
    timed: Sequence[Row] = (),
) -> Wave:
    """Return which trials to run next.

    Args:
        rows: all rows of the study so far; none before the first wave. Trials of a wave must have
            ended (done, stopped early, diverged or failed) before this is called. One that failed without
            a value is asked for again; a caller who cannot run it has to stop.
        rule: with ``sites``, ``seeds`` (all that may run, in order), ``interim_analyses`` and ``arms``.
        design: the arms.
        budget: the limits.
        gpu_hours: GPU hours used so far; the next wave is expected to cost as much per trial.
        timed: rows of the stopwatch, if the rule is priced by it.

    Returns:
        The next wave: what complete blocks (every arm with the next seeds) still lack up to the next
        look; or an empty one: ``settled`` or ``budget spent``.

    Raises:
        AnalysisError: the rule has no seeds, the budget does not reach the first look, or the rows
            support no verdict although the last look has come; says why.
        ScreeningMissing: the first look has come, and the rule waits for a screening.
    """
    if not rule.seeds:
        raise AnalysisError("the rule names no seeds, so nothing says which blocks may run; name the most")
    looks = rule.interim_analyses or (len(rule.seeds),)
    ended = {(t.levels, t.seed) for t in ended_trials(rows, rule)[1]} if rows else set()
    lacking = {seed: tuple(arm for arm in design.arms if (arm, seed) not in ended) for seed in rule.seeds}
    complete = next((n for n, seed in enumerate(rule.seeds) if lacking[seed]), len(rule.seeds))
    taken = sum(look <= complete for look in looks)
    share = shares_spent(looks, taken, rule)
    judged = [row for row in rows if row.seed in rule.seeds[: looks[taken - 1]]]  # complete seeds alone
    evidence = _weighed(judged, rule, timed, last=taken == len(looks)) if taken else None
    if evidence is not None and evidence.settled:
        reason = f"Every verdict is settled after {_seeds(looks[taken - 1])}."
        return Wave(taken, (), SETTLED, reason, share)
    if taken == len(looks):
        return Wave(taken, (), SPENT, f"All {_seeds(looks[-1])} that the rule allows have run.", share)
    todo = tuple((seed, lacking[seed]) for seed in rule.seeds[: looks[taken]] if lacking[seed])
    wave = Wave(taken + 1, todo, CONTINUE, _why(taken, looks, evidence), share)
    num_trials = len({row.trial for row in rows})
    refusal = _over(budget, num_trials, len(ended), wave, gpu_hours)
    if refusal and not taken:
        raise AnalysisError(f"{refusal}; without a first look there is no verdict, so raise the budget")
    return Wave(taken, (), SPENT, f"{refusal[0].upper()}{refusal[1:]}.", share) if refusal else wave


def _weighed(rows: Sequence[Row], rule: DecisionRule, timed: Sequence[Row], last: bool) -> Evidence | None:
    """Return the evidence; None if it is too early for any: a seed diverged, and the next look has more."""
    try:
        return weigh(rows, rule, timed)
    except ScreeningMissing:
        raise
    except AnalysisError:
        if last:
            raise
        return None


def _why(taken: int, looks: Sequence[int], evidence: Evidence | None) -> str:
    """Return why the study goes on; with one trial's noise, which was only assumed before the first look."""
    if not taken:
        return f"The first look comes after {_seeds(looks[0])}."
    noise = "" if evidence is None else f" (one trial's noise: {evidence.noise:.2f} points)"
    return (
        f"Not all is settled after {_seeds(looks[taken - 1])}{noise}; the next look comes after "
        f"{looks[taken]}."
    )


def _seeds(number: int) -> str:
    return f"{number} seed{'s' if number > 1 else ''}"


def _over(budget: Budget, begun: int, ended: int, wave: Wave, gpu_hours: float) -> str:
    """Return why a wave is beyond the budget; empty if it is not."""
    again = begun - ended  # began before, and are asked for again
    trials = begun + wave.num_trials - again
    if trials > budget.trials:
        return f"look {wave.look} needs {trials} trials in all, and the budget is {budget.trials}"
    # With no trial that has rows, the hours were lost with killed ones, and say nothing of the next.
    hours = gpu_hours * (1 + wave.num_trials / begun) if begun else gpu_hours
    if hours > budget.gpu_hours:
        return (
            f"look {wave.look} needs about {hours:.1f} GPU hours in all, the budget is {budget.gpu_hours:g}"
        )
    return ""
