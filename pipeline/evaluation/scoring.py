"""The official metric of many sets of detections, in several processes: of all arms of a cohort, say.

Forty frames of 300 boxes take a second of CPU; sixteen arms under five conditions are eighty times that.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset

from pipeline.evaluation.inference import DetectionsByCondition
from pipeline.evaluation.nuscenes_metric import NuScenesMetric, Score

Scored = tuple[list[Score], list[Score], int]
"""What ``NuScenesMetric.score_draws`` returns."""

ScoresByCondition = dict[str, Callable[[], Scored]]
"""Condition -> a function that returns its scores, or raises the error that it met."""


def score_each(
    metric: NuScenesMetric, found: Sequence[DetectionsByCondition], processes: int
) -> list[ScoresByCondition]:
    """Score the detections of several detectors under every condition.

    Args:
        metric: of the split.
        found: per detector its detections.
        processes: that share the work; with 0 a condition is scored in this process, when it is asked for.

    Returns:
        Per detector its scores. An error is of one detector and one condition; the others are whole.
    """
    tasks = [(metric, *one) for detections in found for one in detections.values()]
    made: list[Callable[[], Scored]] = [_Later(task) for task in tasks]
    if processes and len(tasks) > 1:
        loader = DataLoader(
            _Tasks(tasks),
            batch_size=None,
            num_workers=min(processes, len(tasks)),
            collate_fn=_as_it_is,
            worker_init_fn=_one_thread,
            generator=torch.Generator(),  # otherwise the loader draws from the global random state
        )
        made = list(loader)
    following = iter(made)
    return [{condition: next(following) for condition in detections} for detections in found]


class _Later:
    """Scores when it is called."""

    def __init__(self, task: tuple[Any, ...]) -> None:
        self._task = task

    def __call__(self) -> Scored:
        metric, poses, detections = self._task
        scored: Scored = metric.score_draws(poses, detections)
        return scored


class _Known:
    """Returns scores, or raises an error, that another process came to."""

    def __init__(self, scored: Scored | None, error: Exception | None) -> None:
        self._scored, self._error = scored, error

    def __call__(self) -> Scored:
        if self._scored is None:
            assert self._error is not None
            raise self._error
        return self._scored


class _Tasks(Dataset[_Known]):
    """Scores by number; an error is a value, because torch would wrap its message in a traceback."""

    def __init__(self, tasks: Sequence[tuple[Any, ...]]) -> None:
        self._tasks = tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> _Known:
        try:
            return _Known(_Later(self._tasks[index])(), None)
        except ValueError as error:
            return _Known(None, error)


def _as_it_is(made: Any) -> Any:
    return made


def _one_thread(_: int) -> None:
    threadpool_limits(1)
