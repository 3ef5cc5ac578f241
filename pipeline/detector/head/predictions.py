"""What the head predicts, and whether it is finite."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.detector.head.denoising import DenoisingQueries


@dataclass(frozen=True)
class Predictions:
    """Predictions of the task heads: L decoder layers, B samples, Q queries.

    Attributes:
        codes: (L, B, Q, 10), see ``box_coder.CODES``.
        logits: (L, B, Q, C), one sigmoid per class.
    """

    codes: Tensor
    logits: Tensor

    @property
    def finite(self) -> Tensor:
        """(L,) bool: whether a layer has neither NaN nor infinity."""
        return torch.stack([t.isfinite().flatten(1).all(dim=1) for t in (self.codes, self.logits)]).all(dim=0)


@dataclass(frozen=True)
class HeadOutput:
    """Result of a forward pass of the head.

    Attributes:
        matching: predictions of the learned queries.
        denoising: predictions of the denoising slots, and the queries; None without denoising.
        weights: (B, P + Q, 2) LiDAR and camera weight per query, denoising slots first. None if no layer
            has a bias.
    """

    matching: Predictions
    denoising: tuple[Predictions, DenoisingQueries] | None
    weights: Tensor | None


def check_finite(heads: Mapping[str, Predictions]) -> None:
    """Raise FloatingPointError if a prediction is NaN or infinite; ``heads`` are predictions by name."""
    for name, head in heads.items():
        layers = head.finite.tolist()
        if not all(layers):
            raise FloatingPointError(
                f"{name}: decoder layer {layers.index(False)} predicts NaN or inf; inputs or weights are "
                "not finite, or the learning rate is too high"
            )
