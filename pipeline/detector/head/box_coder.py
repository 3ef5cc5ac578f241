"""Encoding of boxes as the codes that the network predicts, and decoding.

A code has ten numbers in the order of ``CODES``. The published checkpoints distribute them over heads with
misleading names: `center` 2, `height` 1, `dim` 3, `rot` 2, `vel` 2 channels are concatenated. So the channel
called *height* is the logarithm of the length, and *dim* holds log width, **centre z** and log height. Loss,
assigner and decoder of CMT all use this order (junjie18/CMT, issues 71 and 103). The parameter names stay as
they are; our code names what the numbers mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmdet3d.registry import TASK_UTILS
from torch import Tensor

from pipeline.detector.acceleration.async_transfer import constant

CODES = ("x", "y", "log_length", "log_width", "z", "log_height", "sin_yaw", "cos_yaw", "vx", "vy")
"""Meaning of the ten channels: x, y, z of the box centre in m, velocities in m/s."""

HEADS = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
"""Name of a head in checkpoints -> number of its channels, in channel order."""


def encode_boxes(boxes: Tensor) -> Tensor:
    """Encode boxes as codes.

    Args:
        boxes: (..., 9) centre x, y, z, length, width, height in m, yaw in rad, velocity x, y in m/s.

    Returns:
        (..., 10), see ``CODES``. A NaN stays NaN.
    """
    x, y, z, _, _, _, yaw, vx, vy = boxes.unbind(dim=-1)
    log_length, log_width, log_height = boxes[..., 3:6].log().unbind(dim=-1)
    codes = [x, y, log_length, log_width, z, log_height, yaw.sin(), yaw.cos(), vx, vy]
    return torch.stack(codes, dim=-1)


def decode_boxes(codes: Tensor) -> Tensor:
    """Decode codes (..., 10) to boxes (..., 9); the inverse of ``encode_boxes``."""
    x, y, log_length, log_width, z, log_height, sin, cos, vx, vy = codes.unbind(dim=-1)
    sizes = (log_length.exp(), log_width.exp(), log_height.exp())
    return torch.stack([x, y, z, *sizes, torch.atan2(sin, cos), vx, vy], dim=-1)


@dataclass(frozen=True)
class DecodedBoxes:
    """Boxes of one sample, best first.

    Attributes:
        boxes: (N, 9), z at the box centre.
        scores: (N,) in [0, 1].
        labels: (N,) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@TASK_UTILS.register_module()
class MultiTaskBBoxCoder:
    """Decode the (query, class) pairs with the highest scores. There is no threshold and no NMS."""

    def __init__(
        self, pc_range: Sequence[float], post_center_range: Sequence[float], max_num: int, num_classes: int
    ):
        """Store the settings.

        Args:
            pc_range: x, y, z minima and maxima in m, to which [0, 1] is mapped.
            post_center_range: x, y, z minima and maxima in m for the centres of boxes that are kept.
            max_num: largest number of boxes per sample.
            num_classes: number of classes in the logits.

        Raises:
            ValueError: a range that is not six numbers, minima before maxima.
        """
        for name, values in (("pc_range", pc_range), ("post_center_range", post_center_range)):
            if len(values) != 6 or any(low >= high for low, high in zip(values[:3], values[3:], strict=True)):
                raise ValueError(
                    f"bbox_coder.{name}: expected x, y, z minima then maxima, got {list(values)}"
                )
        self.pc_range = tuple(float(v) for v in pc_range)
        self.post_center_range = tuple(float(v) for v in post_center_range)
        self.max_num = max_num
        self.num_classes = num_classes

    def decode(self, codes: Tensor, logits: Tensor) -> list[DecodedBoxes]:
        """Decode the predictions of one decoder layer.

        Args:
            codes: (B, Q, 10).
            logits: (B, Q, num_classes).
        """
        return self.keep(*self.best(codes, logits))

    def best(self, codes: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the N best pairs of each sample; the host does not wait for the device.

        Args:
            codes: (B, Q, 10).
            logits: (B, Q, num_classes).

        Returns:
            Boxes (B, N, 9), best first; and (B, N) each: scores, labels (int64), whether the centre is in
            range.
        """
        scores = logits.sigmoid().flatten(1)
        best, index = scores.topk(min(self.max_num, scores.shape[1]))
        boxes = decode_boxes(codes.take_along_dim((index // self.num_classes)[..., None], dim=1))
        limits = constant(self.post_center_range, boxes.device, boxes.dtype)
        centres = boxes[..., :3]
        # A centre that is not a number stays, so that whoever writes detections can refuse it.
        inside = ~((centres < limits[:3]) | (centres > limits[3:])).any(dim=-1)
        return boxes, best, index % self.num_classes, inside

    def keep(self, boxes: Tensor, scores: Tensor, labels: Tensor, inside: Tensor) -> list[DecodedBoxes]:
        """Drop boxes whose centre is out of range; arguments as ``best`` returns them, on the host."""
        places = [one.nonzero().squeeze(1) for one in inside]
        return [
            DecodedBoxes(b[at], s[at], c[at])
            for b, s, c, at in zip(boxes, scores, labels, places, strict=True)
        ]
