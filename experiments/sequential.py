"""Sequential studies: which trials to add next, or why none.

A pure function of the rows so far, called between waves. It judges as the report does, at the looks that
the rule fixed before the first trial, so that looking more often does not make more verdicts false.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.decide import UNDECIDED, weigh
from experiments.designs import Arm, Design
from experiments.rule import DecideError, Rule
from pipeline.rows import Row

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
        """Refuse a budget that buys nothing."""
        if self.trials < 1 or not self.gpu_hours > 0:
            raise DecideError(
                f"the budget is {self.trials} trials and {self.gpu_hours:g} GPU hours; expected more than 0"
            )


@dataclass(frozen=True)
class Wave:
    """What to run next.

    Attributes:
        look: the look that follows it, from 1; of an ended study the last look that was taken.
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
        """How many trials it adds."""
        return sum(len(arms) for _, arms in self.arms_by_seed)


def next_wave(
    rows: Sequence[Row], rule: Rule, design: Design, budget: Budget, gpu_hours: float = 0.0
) -> Wave:
    """Say which trials to run next.

    Args:
        rows: all rows of the study so far; none before the first wave. Trials of a wave must have
            ended (done, stopped early, diverged or failed) before this is called.
        rule: with ``sites``, ``seeds`` (the most that may run, in their order), ``looks`` and ``arms``.
        design: the arms.
        budget: the limits.
        gpu_hours: GPU hours used so far.

    Returns:
        The next wave: complete blocks (every arm with the next seeds) up to the next look; or an empty
        one: ``settled`` or ``budget spent``.

    Raises:
        DecideError: the rows support no verdict although their look has come; says why.
    """
    looks = rule.looks or (len(rule.seeds),)
    ran = {row.trial for row in rows}
    begun = sum(seed in {row.seed for row in rows} for seed in rule.seeds)
    taken = sum(look <= begun for look in looks)
    if taken:
        evidence = weigh(rows, rule)
        if all(verdict.verdict != UNDECIDED for verdict in evidence.verdicts):
            return Wave(taken, (), SETTLED, "Every verdict is settled.")
    if taken == len(looks):
        return Wave(taken, (), SPENT, f"All {len(rule.seeds)} seeds have run.")
    seeds = rule.seeds[begun : looks[taken]]
    wave = Wave(taken + 1, tuple((seed, design.arms) for seed in seeds), CONTINUE, "")
    if len(ran) + wave.num_trials > budget.trials:
        return Wave(taken, (), SPENT, f"The next look needs {wave.num_trials} trials more than {len(ran)}.")
    return wave
