"""Turn detections into the boxes of a nuScenes submission, and save them as a file of arrays."""

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
"""Most boxes per frame that the devkit accepts (``max_boxes_per_sample`` of detection_cvpr_2019)."""


MOVING_M_PER_S = 0.2
"""Above this speed an object gets the moving attribute, as in mmdet3d's NuScenesMetric."""


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
"""Class -> (attribute at rest, attribute when moving), as mmdet3d's NuScenesMetric assigns them."""


class EvaluationError(ValueError):
    """Detections that the official metric cannot evaluate."""


@dataclass(frozen=True)
class FramePose:
    """A frame's token and its pose.

    Attributes:
        token: the frame's sample token.
        lidar2global: transform from the LiDAR frame to the global frame, (4, 4) float64.
    """

    token: str
    lidar2global: NDArray[np.float64]

    @classmethod
    def of(cls, sample: Sample) -> "FramePose":
        """Take the pose of a sample that has not been augmented."""
        return cls(sample.token, sample.ego2global @ sample.lidar2ego)


def submission_boxes(pose: FramePose, detections: Detections) -> list[dict[str, Any]]:
    """Turn one frame's detections into the devkit's records.

    Args:
        pose: the frame's token and pose.
        detections: the frame's detections, in the LiDAR frame.

    Returns:
        One record per box in the global frame, highest score first, at most ``MAX_BOXES``.

    Raises:
        EvaluationError: a box or score is not finite (a diverged model), or the pose is not.
    """
    if not (np.isfinite(detections.boxes).all() and np.isfinite(detections.scores).all()):
        raise EvaluationError(
            f"frame {pose.token}: detections hold numbers that are not finite; the weights have diverged"
        )
    if not np.isfinite(pose.lidar2global).all():
        raise EvaluationError(
            f"frame {pose.token}: its pose holds numbers that are not finite; check the dataset's tables "
            "ego_pose and calibrated_sensor"
        )
    best = np.argsort(-detections.scores, kind="stable")[:MAX_BOXES]
    boxes = detections.boxes[best].astype(np.float64)
    scores, labels = detections.scores[best], detections.labels[best]
    turn, translation = pose.lidar2global[:3, :3], pose.lidar2global[:3, 3]
    centres = boxes[:, :3] @ turn.T + translation
    sizes = boxes[:, [4, 3, 5]]  # the order of the devkit: width, length, height
    rotations = Rotation.from_matrix(turn) * Rotation.from_euler("z", boxes[:, 6:7])
    quaternions = np.roll(rotations.as_quat().reshape(-1, 4), 1, axis=1)  # scipy has w last, the devkit first
    velocities = (np.pad(boxes[:, 7:9], ((0, 0), (0, 1))) @ turn.T)[:, :2]
    moving = np.linalg.norm(velocities, axis=1) > MOVING_M_PER_S
    columns = (centres, sizes, quaternions, velocities, labels, scores, moving)
    return [
        {
            "sample_token": pose.token,
            "translation": centre,
            "size": size,
            "rotation": rotation,
            "velocity": velocity,
            "detection_name": CLASSES[label],
            "detection_score": float(score),
            "attribute_name": ATTRIBUTES[CLASSES[label]][int(moves)],
        }
        for centre, size, rotation, velocity, label, score, moves in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


def save_detections(path: Path, poses: Sequence[FramePose], detections: Sequence[Detections]) -> None:
    """Save detections as one npz file for later resampling.

    The file holds the arrays of all frames one after the other. ``ends`` holds the index after each frame's
    last box.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        tokens=np.array([pose.token for pose in poses]),
        lidar2global=np.stack([pose.lidar2global for pose in poses]),
        ends=np.cumsum([len(frame.scores) for frame in detections]),
        boxes=np.concatenate([frame.boxes for frame in detections]),
        scores=np.concatenate([frame.scores for frame in detections]),
        labels=np.concatenate([frame.labels for frame in detections]).astype(np.int8),
    )


def load_detections(path: Path) -> tuple[list[FramePose], list[Detections]]:
    """Read a file of ``save_detections``: the poses and the detections, one of each per frame."""
    with np.load(path, allow_pickle=False) as arrays:
        poses = [FramePose(str(t), m) for t, m in zip(arrays["tokens"], arrays["lidar2global"], strict=True)]
        cuts = arrays["ends"][:-1]
        parts = [np.split(arrays[name], cuts) for name in ("boxes", "scores", "labels")]
    detections = [Detections(b, s, c.astype(np.int64)) for b, s, c in zip(*parts, strict=True)]
    return poses, detections
