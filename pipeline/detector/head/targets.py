"""Ground truth of a batch in tensors of one shape, so that losses can be captured in a CUDA graph."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BOX_SIZE = 9
NOTHING = -1
"""Label of a place without a box."""


@dataclass(frozen=True)
class Targets:
    """Boxes of B samples in M places each.

    Attributes:
        boxes: (B, M, 9) as ``encode_boxes`` takes them; NaN at a place without a box.
        labels: (B, M) int64: a class, the number of classes for background, or ``NOTHING``.
    """

    boxes: Tensor
    labels: Tensor

    @classmethod
    def of(cls, boxes: Sequence[Tensor], labels: Sequence[Tensor], places: int = 1) -> "Targets":
        """Put the boxes of each sample into its first places.

        Args:
            boxes: per sample (n, 9).
            labels: per sample (n,).
            places: M is at least this, and at least the largest n.
        """
        most = max(places, *(len(label) for label in labels))
        made = boxes[0].new_full((len(boxes), most, BOX_SIZE), torch.nan)
        classes = labels[0].new_full((len(labels), most), NOTHING)
        for b, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            made[b, : len(box)] = box
            classes[b, : len(label)] = label
        return cls(made, classes)

    @property
    def counts(self) -> Tensor:
        """(B,) int64: the number of boxes of each sample."""
        return (self.labels != NOTHING).sum(dim=1)
