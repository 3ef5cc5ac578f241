"""The official metric on scenes drawn with replacement, to see how much the scenes decide.

mAP and NDS are no averages over scenes: precision and recall are of all detections together. But the
devkit matches detections to objects frame by frame, whatever the other frames hold. So the matches are
found once, and every draw of scenes recomputes the curves from them, frames counted as often as drawn;
from the curves on, the devkit's own functions are used.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 100
"""Draws of scenes: they estimate a standard deviation to 7 per cent, and cost two rows each."""
SEED = 0
"""Seeds the draws: the same for every trial, so that trials differ in nothing but themselves."""
FEWEST_SCENES = 5
"""With fewer scenes their spread cannot be estimated (Student's quantile exceeds 3): none are drawn."""


@dataclass(frozen=True)
class Matches:
    """One class at one distance, as the devkit's ``accumulate`` matches it; best confidence first.

    Attributes:
        confidence: (n,) of the detections.
        hit: (n,) bool, whether a detection found an object.
        errors: true-positive error -> (n,) its value, of hits alone.
        scene: (n,) index of the scene.
        objects: (scenes,) how many objects there are to find.
    """

    confidence: Array
    hit: NDArray[np.bool_]
    errors: Mapping[str, Array]
    scene: NDArray[np.int64]
    objects: NDArray[np.int64]


def can_draw(scenes: Collection[str]) -> bool:
    """Tell whether there are scenes enough to draw from."""
    return len(scenes) >= FEWEST_SCENES


def drawn_counts(num_scenes: int, draws: int = DRAWS) -> NDArray[np.int64]:
    """Return how often each scene is drawn, (draws, scenes)."""
    return np.random.default_rng(SEED).multinomial(num_scenes, [1 / num_scenes] * num_scenes, draws)


def resampled_scores(
    evaluation: Any, scene_of: Mapping[str, str], counts: NDArray[np.int64] | None = None
) -> tuple[list[dict[str, float]], int]:
    """Score draws of scenes.

    Args:
        evaluation: the devkit's ``DetectionEval``, its boxes loaded and filtered.
        scene_of: frame token -> scene.
        counts: (draws, scenes) how often each scene counts, scenes sorted; ``drawn_counts`` by default.

    Returns:
        ``mAP`` and ``NDS`` of every draw, and the number of scenes; no draws of fewer than
        ``FEWEST_SCENES`` scenes, unless counts are given.
    """
    scenes = {scene: index for index, scene in enumerate(sorted(set(scene_of.values())))}
    if counts is None:
        if not can_draw(scenes):
            return [], len(scenes)
        counts = drawn_counts(len(scenes))
    frames = {token: scenes[scene] for token, scene in scene_of.items()}
    config = evaluation.cfg
    matched = {
        (name, reach): match(evaluation, name, reach, frames, len(scenes))
        for name in config.class_names
        for reach in config.dist_ths
    }
    return [_score(matched, config, row) for row in counts], len(scenes)


def match(evaluation: Any, name: str, reach: float, frames: Mapping[str, int], num_scenes: int) -> Matches:
    """Match the detections of a class to its objects, the most confident first, as ``accumulate`` does.

    Args:
        evaluation: see ``resampled_scores``.
        name: the class.
        reach: largest distance of a match, metres.
        frames: frame token -> index of its scene.
        num_scenes: how many scenes there are.
    """
    wanted = reach == evaluation.cfg.dist_th_tp
    objects = np.zeros(num_scenes, dtype=np.int64)
    rows: list[tuple[float, int, int, bool, tuple[float, ...]]] = []
    place = 0
    for token in evaluation.pred_boxes.sample_tokens:
        true = [box for box in evaluation.gt_boxes[token] if box.detection_name == name]
        found = [box for box in evaluation.pred_boxes[token] if box.detection_name == name]
        objects[frames[token]] += len(true)
        # equal confidences: the later one first, as the devkit's sorting has it
        order = sorted(range(len(found)), key=lambda i: (found[i].detection_score, i), reverse=True)
        partner = _greedy(found, true, order, reach)
        for index, box in enumerate(found):
            mate = partner[index]
            errors = _errors(true[mate], box, name) if wanted and mate is not None else ()
            rows.append((box.detection_score, place + index, frames[token], mate is not None, errors))
        place += len(found)
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


def _greedy(
    found: Sequence[Any], true: Sequence[Any], order: Sequence[int], reach: float
) -> list[int | None]:
    """Return the object that each detection finds: the nearest that is free, if within reach."""
    partner: list[int | None] = [None] * len(found)
    if not true:
        return partner
    places = np.array([box.translation[:2] for box in true])
    free = np.ones(len(true), dtype=bool)
    for index in order:
        distance = np.linalg.norm(places - np.array(found[index].translation[:2]), axis=1)
        distance[~free] = np.inf
        nearest = int(distance.argmin())
        if distance[nearest] < reach:
            partner[index], free[nearest] = nearest, False
    return partner


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
    """Return the devkit's ``DetectionMetricData`` of scenes counted so often; see its ``accumulate``."""
    from nuscenes.eval.common.utils import cummean
    from nuscenes.eval.detection.data_classes import DetectionMetricData

    times = counts[matches.scene]
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


def _score(
    matched: Mapping[tuple[str, float], Matches], config: Any, counts: NDArray[np.int64]
) -> dict[str, float]:
    """Return mAP and NDS as the devkit's ``DetectionEval.evaluate`` puts them together."""
    from nuscenes.eval.detection.algo import calc_ap, calc_tp
    from nuscenes.eval.detection.data_classes import DetectionMetrics

    metrics = DetectionMetrics(config)
    for (name, reach), matches in matched.items():
        curves = _curves(matches, counts)
        metrics.add_label_ap(name, reach, calc_ap(curves, config.min_recall, config.min_precision))
        if reach == config.dist_th_tp:
            for kind in matches.errors:
                given = kind not in UNDEFINED.get(name, ())
                error = calc_tp(curves, config.min_recall, kind) if given else float("nan")
                metrics.add_label_tp(name, kind, error)
    return {"mAP": float(metrics.mean_ap), "NDS": float(metrics.nd_score)}


UNDEFINED = {
    "traffic_cone": ("attr_err", "vel_err", "orient_err"),
    "barrier": ("attr_err", "vel_err"),
}
"""Errors that the devkit does not count for a class."""
