"""Converts samples to model inputs, and predictions to detections.

``Sample`` and ``Detections`` are ours and independent of the mm libraries. ``Det3DDataSample`` is mmdet3d's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet3d.structures import Box3DMode, Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor

from pipeline.data.sample import DataError, Detections, Sample
from pipeline.detector.acceleration.async_transfer import upload_beside

GRAVITY = (0.5, 0.5, 0.5)  # our z is at the centre of a box; mmdet3d's is at the centre of its bottom face
BOX_COLUMNS = 9


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return samples in the form that ``model.data_preprocessor`` takes.

    Args:
        samples: frames with images of one size; boxes and labels may be empty.

    Returns:
        ``inputs``: ``img``, a list of (V, 3, h, w) uint8 BGR tensors, and ``points``, a list of (N, 5)
        float32; they share the memory of the samples. ``data_samples``: one ``Det3DDataSample`` each, with
        ``gt_instances_3d``, and with ``lidar2img`` (V, 4, 4) float64 in its meta information. A NaN velocity
        stays NaN; the loss ignores it.

    Raises:
        DataError: no sample, or images of different sizes.
    """
    shapes = {sample.images.shape for sample in samples}
    if len(shapes) != 1:
        raise DataError(
            f"a batch needs images of one size (views, height, width, 3), got {sorted(shapes) or 'none'}"
        )
    # Views: to put the colours apart takes the host 10 to 30 ms a full-size batch, and a GPU next to nothing.
    images = [torch.from_numpy(np.ascontiguousarray(s.images)).permute(0, 3, 1, 2) for s in samples]
    points = [torch.from_numpy(np.ascontiguousarray(s.points)) for s in samples]
    return {
        "inputs": {"img": images, "points": points},
        "data_samples": [_data_sample(sample) for sample in samples],
    }


def _data_sample(sample: Sample) -> Det3DDataSample:
    """Return mmdet3d's description of one frame."""
    views, height, width, _ = sample.images.shape
    made = Det3DDataSample(
        metainfo={
            "token": sample.token,
            "num_views": views,
            "img_shape": (height, width),
            "lidar2img": np.asarray(sample.lidar2img, dtype=np.float64),
            "box_type_3d": LiDARInstance3DBoxes,
            "box_mode_3d": Box3DMode.LIDAR,
        }
    )
    boxes = torch.from_numpy(np.ascontiguousarray(sample.boxes, dtype=np.float32)).reshape(-1, BOX_COLUMNS)
    made.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=BOX_COLUMNS, origin=GRAVITY),
        labels_3d=torch.from_numpy(np.ascontiguousarray(sample.labels, dtype=np.int64)),
    )
    return made


def preprocess(preprocessor: Any, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
    """Normalise, pad and stack the images of a batch on the model's device; boxes stay on the host.

    mmdet3d's preprocessor would copy every box and label to the GPU, and wait for each copy.

    Args:
        preprocessor: ``model.data_preprocessor``.
        batch: what ``collate`` made.
        training: whether it is for a training step.

    Returns:
        Arguments of the model: ``inputs`` and ``data_samples``. On a GPU ``inputs`` has an event more,
        ``ready``: from then on another stream can read ``points``.
    """
    inputs, ready = upload_beside(batch["inputs"], preprocessor.device)
    made: dict[str, Any] = preprocessor({"inputs": inputs}, training)
    if ready is not None:
        made["inputs"]["ready"] = ready
    height, width = made["inputs"]["imgs"].shape[-2:]
    for sample in batch["data_samples"]:
        sample.set_metainfo({"batch_input_shape": (height, width)})
    return {"inputs": made["inputs"], "data_samples": list(batch["data_samples"])}


def to_detections(data_samples: Sequence[Det3DDataSample]) -> list[Detections]:
    """Return the predicted boxes of mmdet3d's data samples.

    Args:
        data_samples: with ``pred_instances_3d``, as ``model(..., mode="predict")`` returns them.

    Returns:
        One ``Detections`` per sample, best first, z at the centre of the box.
    """
    return [_detections(sample.pred_instances_3d) for sample in data_samples]


def _detections(predicted: InstanceData) -> Detections:
    scores = predicted.scores_3d.detach().float().cpu()
    # A stable sort: equal scores keep the model's order, so that every run gives the same result.
    order = torch.argsort(scores, descending=True, stable=True)
    boxes = predicted.bboxes_3d.tensor.detach().float().cpu().clone()
    boxes[:, 2] += boxes[:, 5] / 2
    return Detections(
        boxes=boxes[order].numpy(),
        scores=scores[order].numpy(),
        labels=predicted.labels_3d.detach().cpu()[order].to(torch.int64).numpy(),
    )


def read_meta(data_samples: Sequence[Any]) -> tuple[Tensor, tuple[int, int]]:
    """Return lidar2img (B, V, 4, 4) float64 and the size (height, width) of the padded images.

    Raises:
        ValueError: the meta information of a data sample lacks one of them.
    """
    metas = [sample.metainfo for sample in data_samples]
    for key in ("lidar2img", "batch_input_shape"):
        if missing := [i for i, meta in enumerate(metas) if key not in meta]:
            raise ValueError(
                f"data_samples {missing}: the meta information has no {key!r}, which the head needs"
            )
    matrices = torch.from_numpy(np.stack([np.asarray(meta["lidar2img"], dtype=np.float64) for meta in metas]))
    height, width = metas[0]["batch_input_shape"]
    return matrices, (int(height), int(width))


def num_boxes(data_samples: Sequence[Any]) -> list[int]:
    """Return how many boxes of each sample count; mmdet3d labels those that do not with -1."""
    return [int((sample.gt_instances_3d.labels_3d >= 0).sum()) for sample in data_samples]


def read_ground_truth(
    data_samples: Sequence[Any], device: torch.device, num_classes: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return boxes and labels of data samples on a device, without those that do not count (``num_boxes``).

    Returns:
        Per sample, boxes (M, 9) float32 with z at the box centre, and labels (M,).

    Raises:
        DataError: a label that the head does not have, or boxes without velocities.
    """
    instances = [sample.gt_instances_3d for sample in data_samples]
    for found in instances:
        if (dims := found.bboxes_3d.box_dim) != BOX_COLUMNS:
            raise DataError(
                f"boxes have {dims} numbers, expected {BOX_COLUMNS} with the velocity; set with_velocity=True"
            )
        if len(found.labels_3d) and (label := int(found.labels_3d.max())) >= num_classes:
            raise DataError(
                f"a box has the label {label}, the head has {num_classes} classes (tasks, num_class); let "
                "both be of the same classes"
            )
    instances = [g if bool((g.labels_3d >= 0).all()) else g[g.labels_3d >= 0] for g in instances]
    boxes = [torch.cat([g.bboxes_3d.gravity_center, g.bboxes_3d.tensor[:, 3:]], dim=1) for g in instances]
    labels = [g.labels_3d.to(device) for g in instances]
    return [b.to(device=device, dtype=torch.float32) for b in boxes], labels
