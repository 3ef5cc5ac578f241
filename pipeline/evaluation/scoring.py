"""The official metric of many sets of detections: of all arms of a cohort, say.

Forty frames of 300 boxes take a second of CPU; sixteen arms under five conditions are eighty times that. So
each is a task that another process can do (``pipeline.runtime.background``).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from pipeline.evaluation.inference import DetectionsByCondition
from pipeline.evaluation.nuscenes_metric import NuScenesMetric, Score

Scored = tuple[list[Score], list[Score], int]
"""What ``NuScenesMetric.score_draws`` returns."""

ScoresByCondition = dict[str, Callable[[], Scored]]
"""Condition -> a function that returns its scores, or raises the error that it met."""


def scoring_tasks(
    metric: NuScenesMetric, found: Sequence[DetectionsByCondition]
) -> list[Callable[[], Scored]]:
    """Return what scores the detections of several detectors: a task for each condition of each."""
    return [partial(metric.score_draws, *one) for detections in found for one in detections.values()]


def scores_of_each(
    found: Sequence[DetectionsByCondition], scores: Iterator[Callable[[], Scored]]
) -> list[ScoresByCondition]:
    """Return the scores of each detector.

    Args:
        found: per detector its detections.
        scores: a result for each of ``scoring_tasks``, in order; an error is of one detector and one
            condition. What follows them is left.
    """
    return [{condition: next(scores) for condition in detections} for detections in found]
