"""Detections as boxes of a nuScenes submission, and as a file of arrays that keeps them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from pipeline.config.settings import CLASSES
from pipeline.data.sample import Detections, Sample

MAX_BOXES = 500
"""Boxes per frame that the devkit accepts (``max_boxes_per_sample`` of detection_cvpr_2019)."""


MOVING_M_PER_S = 0.2
"""Above this speed an object gets the moving attribute; mmdet3d's NuScenesMetric."""


ATTRIBUTES: Mapping[str, tuple[str, str]] = {
    "car": ("vehicle.parked", "vehicle.moving"),
    "truck": ("vehicle.parked", "vehicle.moving"),
    "construction_vehicle": ("vehicle.parked", "vehicle.moving"),
    "bus": ("vehicle.stopped", "vehicle.moving"),
    "trailer": ("vehicle.parked", "vehicle.moving"),
    "barrier": ("", ""),
    "motorcycle": ("cycle.without_rider", "cycle.with_rider"),
    "bicycle": ("cycle.without_rider", "cycle.with_rider"),
    "pedestrian": ("pedestrian.standing", "pedestrian.moving"),
    "traffic_cone": ("", ""),
}
"""Class -> attribute at rest and when moving, as mmdet3d's NuScenesMetric assigns them."""


class EvaluationError(ValueError):
    """Detections that the official metric cannot judge."""


@dataclass(frozen=True)
class FramePose:
    """A frame's token and its way to the global frame, (4, 4) float64, LiDAR frame -> global."""

    token: str
    lidar2global: NDArray[np.float64]

    @classmethod
    def of(cls, sample: Sample) -> "FramePose":
        """Take the pose of a sample that has not been augmented."""
        return cls(sample.token, sample.ego2global @ sample.lidar2ego)


def submission_boxes(pose: FramePose, found: Detections) -> list[dict[str, Any]]:
    """Turn one frame's detections into the devkit's records.

    Raises:
        EvaluationError: a box or score is not finite (a diverged model).
    """
    if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
        raise EvaluationError(
            f"frame {pose.token}: detections hold numbers that are not finite; the weights have diverged"
        )
    best = np.argsort(-found.scores, kind="stable")[:MAX_BOXES]
    boxes, scores, labels = found.boxes[best].astype(np.float64), found.scores[best], found.labels[best]
    turn, shift = pose.lidar2global[:3, :3], pose.lidar2global[:3, 3]
    centres = boxes[:, :3] @ turn.T + shift
    sizes = boxes[:, [4, 3, 5]]  # the devkit wants width, length, height
    rotations = Rotation.from_matrix(turn) * Rotation.from_euler("z", boxes[:, 6:7])
    quaternions = np.roll(rotations.as_quat().reshape(-1, 4), 1, axis=1)  # scipy has w last, the devkit first
    velocities = (np.pad(boxes[:, 7:9], ((0, 0), (0, 1))) @ turn.T)[:, :2]
    moving = np.linalg.norm(velocities, axis=1) > MOVING_M_PER_S
    return [
        {
            "sample_token": pose.token,
            "translation": centres[i].tolist(),
            "size": sizes[i].tolist(),
            "rotation": quaternions[i].tolist(),
            "velocity": velocities[i].tolist(),
            "detection_name": CLASSES[labels[i]],
            "detection_score": float(scores[i]),
            "attribute_name": ATTRIBUTES[CLASSES[labels[i]]][int(moving[i])],
        }
        for i in range(len(boxes))
    ]


def save_detections(path: Path, poses: Sequence[FramePose], detections: Sequence[Detections]) -> None:
    """Keep detections for later resampling, as one npz: arrays of all frames, and where each frame ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        tokens=np.array([pose.token for pose in poses]),
        lidar2global=np.stack([pose.lidar2global for pose in poses]),
        ends=np.cumsum([len(found.scores) for found in detections]),
        boxes=np.concatenate([found.boxes for found in detections]),
        scores=np.concatenate([found.scores for found in detections]),
        labels=np.concatenate([found.labels for found in detections]).astype(np.int8),
    )


def load_detections(path: Path) -> tuple[list[FramePose], list[Detections]]:
    """Read what ``save_detections`` wrote."""
    with np.load(path, allow_pickle=False) as kept:
        poses = [FramePose(str(t), m) for t, m in zip(kept["tokens"], kept["lidar2global"], strict=True)]
        cuts = kept["ends"][:-1]
        parts = [np.split(kept[name], cuts) for name in ("boxes", "scores", "labels")]
    found = [Detections(b, s, c.astype(np.int64)) for b, s, c in zip(*parts, strict=True)]
    return poses, found
