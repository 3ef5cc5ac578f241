"""The official metric from matches, on a whole split and on logs drawn with replacement.

A log is one drive of the vehicle. nuScenes cuts a drive into several scenes, which share streets, weather
and traffic. So scenes of a log are no independent draws, and logs are drawn instead. Where tables name no
log, a scene is its own.

mAP and NDS are no averages over scenes: precision and recall are of all detections together. But the
devkit matches detections to objects frame by frame, whatever the other frames hold. So detections are
matched once. Every draw of logs recomputes the curves from the matches, with each frame counted as often
as its log was drawn. From the curves on, the devkit's own functions are used.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 100
"""Draws of logs; they estimate a standard deviation to 7 per cent, and each costs two rows."""
SEED = 0
"""Seeds the draws; all trials have the same draws, so that trials can be compared."""
FEWEST_SCENES = 5
"""Logs below which none are drawn: their spread cannot be estimated (Student's quantile exceeds 3). Where
each scene is its own log, they are scenes."""


@dataclass(frozen=True)
class Matches:
    """One class at one distance, as the devkit's ``accumulate`` matches it; best confidence first.

    Attributes:
        confidence: (n,) of the detections.
        hit: (n,) bool, whether a detection found an object.
        errors: true-positive error -> its value for each hit, in the same order.
        log: (n,) index of the log.
        objects: (logs,) how many objects there are to find.
    """

    confidence: Array
    hit: NDArray[np.bool_]
    errors: Mapping[str, Array]
    log: NDArray[np.int64]
    objects: NDArray[np.int64]


def can_draw(logs: Collection[str]) -> bool:
    """Return whether there are logs enough to draw from."""
    return len(logs) >= FEWEST_SCENES


def drawn_counts(num_logs: int, draws: int = DRAWS) -> NDArray[np.int64]:
    """Return how often each log is drawn, (draws, logs)."""
    return np.random.default_rng(SEED).multinomial(num_logs, [1 / num_logs] * num_logs, draws)


def named_logs(scene_of: Mapping[str, str], log_of_scene: Mapping[str, str]) -> dict[str, str]:
    """Return frame -> the log that it belongs to, named by the first of the log's scenes.

    So a dataset with a log for each scene has the draws of its scenes.

    Args:
        scene_of: frame -> its scene.
        log_of_scene: scene -> its log; empty if the tables name none.
    """
    first: dict[str, str] = {}
    for scene in sorted(set(scene_of.values())):
        first.setdefault(log_of_scene.get(scene) or scene, scene)
    return {frame: first[log_of_scene.get(scene) or scene] for frame, scene in scene_of.items()}


@dataclass(frozen=True)
class MatchedSplit:
    """The matches of a whole split.

    Attributes:
        matches: (class, largest distance of a match in m) -> its matches.
        config: the devkit's ``DetectionConfig``.
        num_logs: logs of the split.
    """

    matches: Mapping[tuple[str, float], Matches]
    config: Any
    num_logs: int

    def score(self, counts: NDArray[np.int64] | None = None) -> Any:
        """Return the devkit's ``DetectionMetrics``, put together as its ``DetectionEval.evaluate`` does.

        Args:
            counts: (logs,) how often each log counts, logs sorted by name; None: once each.
        """
        from nuscenes.eval.detection.algo import calc_ap, calc_tp
        from nuscenes.eval.detection.data_classes import DetectionMetrics

        counts = np.ones(self.num_logs, dtype=np.int64) if counts is None else counts
        config, metrics = self.config, DetectionMetrics(self.config)
        for (name, reach), matches in self.matches.items():
            curves = _curves(matches, counts)
            metrics.add_label_ap(name, reach, calc_ap(curves, config.min_recall, config.min_precision))
            if reach == config.dist_th_tp:
                for kind in matches.errors:
                    defined = kind not in UNDEFINED.get(name, ())
                    error = calc_tp(curves, config.min_recall, kind) if defined else float("nan")
                    metrics.add_label_tp(name, kind, error)
        return metrics

    def score_draws(self, counts: NDArray[np.int64] | None = None) -> list[dict[str, float]]:
        """Score draws of logs.

        Args:
            counts: (draws, logs) how often each log counts, logs sorted by name; None: ``drawn_counts``, and
                no draws of fewer than ``FEWEST_SCENES`` logs.

        Returns:
            ``mAP`` and ``NDS`` of every draw.
        """
        if counts is None and self.num_logs < FEWEST_SCENES:
            return []
        scored = [self.score(row) for row in (drawn_counts(self.num_logs) if counts is None else counts)]
        return [{"mAP": float(metrics.mean_ap), "NDS": float(metrics.nd_score)} for metrics in scored]


def match_split(truth: Any, detected: Any, config: Any, log_of: Mapping[str, str]) -> MatchedSplit:
    """Match the detections of a split to its objects.

    Args:
        truth: the devkit's ``EvalBoxes`` of the objects, filtered.
        detected: its ``EvalBoxes`` of the detections, filtered.
        config: its ``DetectionConfig``.
        log_of: frame token -> log.
    """
    logs = {log: index for index, log in enumerate(sorted(set(log_of.values())))}
    frames: dict[str, list[_Frame]] = {name: [] for name in config.class_names}
    for token in detected.sample_tokens:
        found, true = _by_class(detected[token]), _by_class(truth[token])
        for name, seen in frames.items():
            seen.append(_Frame.of(found.get(name, []), true.get(name, []), logs[log_of[token]]))
    matches = {
        (name, reach): _match(seen, name, reach, reach == config.dist_th_tp, len(logs))
        for name, seen in frames.items()
        for reach in config.dist_ths
    }
    return MatchedSplit(matches, config, len(logs))


def _by_class(boxes: Sequence[Any]) -> dict[str, list[Any]]:
    by_class: dict[str, list[Any]] = {}
    for box in boxes:
        by_class.setdefault(box.detection_name, []).append(box)
    return by_class


@dataclass(frozen=True)
class _Frame:
    """Detections and objects of one class in a frame, the same for every largest distance of a match.

    Attributes:
        found: the n detections.
        true: the m objects.
        order: of the detections, the most confident first.
        distance: (n, m) from each detection to each object, seen from above, m.
        log: index of the frame's log.
    """

    found: Sequence[Any]
    true: Sequence[Any]
    order: Sequence[int]
    distance: Array
    log: int

    @classmethod
    def of(cls, found: Sequence[Any], true: Sequence[Any], log: int) -> "_Frame":
        # equal confidences: the later one first, as the devkit's sorting has it
        order = sorted(range(len(found)), key=lambda i: (found[i].detection_score, i), reverse=True)
        ends, starts = (
            np.array([box.translation[:2] for box in boxes]).reshape(-1, 2) for boxes in (true, found)
        )
        return cls(found, true, order, np.linalg.norm(ends - starts[:, None], axis=2), log)

    def partners(self, reach: float) -> dict[int, int]:
        """Return detection -> the object that it finds: the nearest that is free, if within reach."""
        partner: dict[int, int] = {}
        if not self.true:
            return partner
        near = self.distance.min(axis=1) < reach  # the others are not within reach of any object
        free = np.ones(len(self.true), dtype=bool)
        for index in self.order:
            if near[index]:
                distance = np.where(free, self.distance[index], np.inf)
                nearest = int(distance.argmin())
                if distance[nearest] < reach:
                    partner[index], free[nearest] = nearest, False
        return partner


def _match(frames: Sequence[_Frame], name: str, reach: float, with_errors: bool, num_logs: int) -> Matches:
    """Match the detections of a class to its objects, the most confident first, as ``accumulate`` does.

    Args:
        frames: of the split, with what they hold of the class.
        name: the class.
        reach: largest distance of a match, m.
        with_errors: compute the true-positive errors of matches.
        num_logs: logs of the split.
    """
    objects = np.zeros(num_logs, dtype=np.int64)
    rows: list[tuple[float, int, int, bool, tuple[float, ...]]] = []
    place = 0
    for frame in frames:
        objects[frame.log] += len(frame.true)
        partner = frame.partners(reach)
        for index, box in enumerate(frame.found):
            mate = partner.get(index)
            errors = _errors(frame.true[mate], box, name) if with_errors and mate is not None else ()
            rows.append((box.detection_score, place + index, frame.log, mate is not None, errors))
        place += len(frame.found)
    rows.sort(reverse=True)
    hit = np.array([row[3] for row in rows], dtype=bool)
    kinds = _error_kinds()
    values = [row[4] or (0.0,) * len(kinds) for row in rows if row[3]]
    columns = np.array(values, dtype=float).reshape(len(values), len(kinds)).T
    return Matches(
        np.array([row[0] for row in rows], dtype=float),
        hit,
        dict(zip(kinds, columns, strict=True)),
        np.array([row[2] for row in rows], dtype=np.int64),
        objects,
    )


def _error_kinds() -> tuple[str, ...]:
    from nuscenes.eval.detection.constants import TP_METRICS

    return tuple(TP_METRICS)


def _errors(true: Any, found: Any, name: str) -> tuple[float, ...]:
    """Return the true-positive errors of a match, in the devkit's order."""
    from nuscenes.eval.common.utils import attr_acc, center_distance, scale_iou, velocity_l2, yaw_diff

    period = np.pi if name == "barrier" else 2 * np.pi
    errors = {
        "trans_err": center_distance(true, found),
        "scale_err": 1 - scale_iou(true, found),
        "orient_err": yaw_diff(true, found, period=period),
        "vel_err": velocity_l2(true, found),
        "attr_err": 1 - attr_acc(true, found),
    }
    return tuple(float(errors[kind]) for kind in _error_kinds())


def _curves(matches: Matches, counts: NDArray[np.int64]) -> Any:
    """Return the devkit's ``DetectionMetricData`` of logs counted so often; see its ``accumulate``."""
    from nuscenes.eval.common.utils import cummean
    from nuscenes.eval.detection.data_classes import DetectionMetricData

    times = counts[matches.log]
    hits = np.repeat(matches.hit, times)
    objects = int(counts @ matches.objects)
    if not objects or not hits.any():
        return DetectionMetricData.no_predictions()
    true, false = np.cumsum(hits).astype(float), np.cumsum(~hits).astype(float)
    confidence = np.repeat(matches.confidence, times)
    recall = np.linspace(0, 1, DetectionMetricData.nelem)
    precision = np.interp(recall, true / objects, true / (false + true), right=0)
    at = np.interp(recall, true / objects, confidence, right=0)
    errors = {}
    of_hits = np.repeat(matches.confidence[matches.hit], times[matches.hit])
    for kind, values in matches.errors.items():
        mean = cummean(np.repeat(values, times[matches.hit]))
        errors[kind] = np.interp(at[::-1], of_hits[::-1], mean[::-1])[::-1]
    return DetectionMetricData(recall=recall, precision=precision, confidence=at, **errors)


UNDEFINED = {
    "traffic_cone": ("attr_err", "vel_err", "orient_err"),
    "barrier": ("attr_err", "vel_err"),
}
"""Errors that the devkit does not count for a class."""
