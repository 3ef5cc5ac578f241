"""The stopwatch: what a plan costs in time, step by step, each round in one process, with one model.

A round visits every plan once, in an order drawn anew, and the baseline twice: two equal visits must not
differ (an A/A test). All visits of a round have the same batch and the same random state. What a machine does
to a round, it does to all plans; what it does within a round, the order spreads over them.

A round has a training step at a learning rate of 0, and a detection at batch 1. What all plans compute alike
(the trunk) is timed once a round, and each visit goes on from its output: a step takes both together.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import numpy as np

from pipeline.config.plan import Plan
from pipeline.data.formats.fingerprint import fingerprint
from pipeline.metrics.rows import Row
from pipeline.metrics.timing import Timed, timed_call
from pipeline.runtime.session import LocalSession
from pipeline.training.components.metrics_logger import common_row
from pipeline.training.stopwatch_rounds import (
    INFERENCE,
    PROCESS,
    TRAINING,
    TRUNK,
    WALL,
    Rounds,
    Start,
    TimedTrial,
    refuse_other_rows,
)
from pipeline.training.timed_model import TimedModel, timed_model_of

WARM_ROUNDS = {"cpu": 1, "cuda": 3}
"""Rounds before the first that counts. A GPU runs a plan once, captures it, and replays it."""


def rounds_of_trial(trial: TimedTrial, start: Start) -> Rounds:
    """Time the model of a trial under several plans.

    Args:
        trial: what is timed.
        start: where to begin.

    Yields:
        The rows of one round after another.

    Raises:
        TrialError: the rows so far were measured otherwise, or a weight has changed.
        DataError, PlanError, CheckpointError: the settings cannot be met.
    """
    session = LocalSession(trial.folder, trial.settings.device)
    session.recipe = trial.digest
    common = common_row(trial.settings, session, "", fingerprint(trial.settings.data))
    if start.like is not None:
        refuse_other_rows(start.like, common)  # before the model is built, which takes seconds
    timed = timed_model_of(trial.settings, trial.folder, len(trial.plans))
    yield from rounds_of(timed, trial.plans, common, start)


def rounds_of(timed: TimedModel, plans: Sequence[Plan], common: Row, start: Start) -> Rounds:
    """Time a model under several plans.

    Args:
        timed: the model.
        plans: the baseline first.
        common: what all rows have in common; its ``recipe_digest`` decides the order of the visits.
        start: where to begin.

    Yields:
        The rows of one round after another.

    Raises:
        TrialError: a weight has changed; the round is not yielded.
    """
    rounds = _Rounds(timed, [plan.resolve(timed.model.sites) for plan in plans], common)
    for warm in range(WARM_ROUNDS[timed.device.type]):
        rounds.run(warm)
    for index in count(start.first + start.process, start.processes):
        rows = rounds.run(index)
        timed.check_unchanged()
        yield [*rows, replace(rows[0], plan="", metric=PROCESS, unit="", value=start.process, draw=None)]


class _Rounds:
    """Runs rounds.

    Args:
        timed: the model.
        plans: resolved, the baseline first.
        common: what all rows have in common.
    """

    def __init__(self, timed: TimedModel, plans: Sequence[Plan], common: Row) -> None:
        self._timed, self._common = timed, common
        self._visits = [plans[0], *plans]

    def run(self, index: int) -> list[Row]:
        """Run one round; return its rows."""
        digest, size = self._common.recipe_digest, len(self._visits)
        rows: list[Row] = []
        kinds = (
            (TRAINING, self._timed.run_training_trunk, self._train),
            (INFERENCE, self._timed.run_detection_trunk, self._detect),
        )
        for metric, trunk, visit in kinds:
            self._timed.use(self._visits[0], index)
            took = timed_call(trunk, self._timed.device)
            rows += self._rows(TRUNK[metric], replace(self._common, step=index), took)
            for at, i in enumerate(draw_order(digest, index, metric, size)):
                plan = self._visits[i]
                self._timed.use(plan, index)
                visited = replace(self._common, plan=str(plan), step=index, draw=at)
                rows += self._rows(metric, visited, visit())
        return rows

    def _train(self) -> Timed:
        took = timed_call(self._timed.train, self._timed.device)
        self._timed.restore()
        steps = self._timed.steps_per_visit
        return Timed(took.primary_ms / steps, took.second_ms / steps)

    def _detect(self) -> Timed:
        return timed_call(self._timed.detect, self._timed.device)

    @staticmethod
    def _rows(metric: str, common: Row, took: Timed) -> list[Row]:
        shared = replace(common, unit="ms", time=time.time(), metric=metric)
        return [
            replace(shared, value=took.primary_ms),
            replace(shared, metric=metric + WALL, value=took.second_ms),
        ]


def draw_order(digest: str, index: int, kind: str, size: int) -> list[int]:
    """Draw the order of a round's visits; the same arguments give the same order.

    Args:
        digest: of the study's recipe.
        index: of the round.
        kind: metric of the visits: training and inference have orders of their own.
        size: number of visits.
    """
    seed = hashlib.sha256(f"{digest} {kind} {index}".encode()).digest()
    return [int(i) for i in np.random.default_rng(list(seed)).permutation(size)]
