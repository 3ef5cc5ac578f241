"""CBGS: frames are resampled so that all classes occur equally often (Zhu et al., arXiv:1908.09492)."""

from collections.abc import Sequence

import numpy as np

from pipeline.config.settings import CLASSES
from pipeline.data.sample import DataError, Sample
from pipeline.data.source import Source

STREAM = 2
"""Separates these draws from the loader's, which are seeded by (seed, epoch) and (seed, epoch, frame, 1)."""


class BalancedSource:
    """A source with resampled frames, like mmdet3d's CBGSDataset.

    Let n_c frames contain class c, and N be the sum of all n_c (a frame counts once for each of its classes).
    For every class, N / 10 frames are drawn with replacement among those that contain it. Nothing is drawn
    for a class in no frame (mmdet3d divides by zero). The frames are drawn once, from the seed. Every epoch
    uses the same frames, and augments each occurrence differently.

    Args:
        source: frames.
        seed: seed of the draws.
    """

    def __init__(self, source: Source, seed: int) -> None:
        self._source = source
        self.frames = resample(source.labels, seed)
        if not self.frames:
            raise DataError(
                f"none of the {len(source)} training frames has a valid box of the ten classes, so there is "
                "nothing for CBGSDataset to draw; train on another split, or without CBGSDataset"
            )
        self.tokens = [source.tokens[i] for i in self.frames]
        self.scenes = [source.scenes[i] for i in self.frames]
        self.blocks: Sequence[int] = ()

    @property
    def labels(self) -> Sequence[frozenset[int]]:
        """Labels that occur in each frame."""
        labels = self._source.labels
        return [labels[i] for i in self.frames]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        return self._source[self.frames[index]]


def resample(labels: Sequence[frozenset[int]], seed: int) -> list[int]:
    """Draw frames, class by class.

    Args:
        labels: labels of each frame.
        seed: seed of the draws.
    """
    rng = np.random.default_rng((seed, 0, 0, STREAM))
    by_class = [[i for i, present in enumerate(labels) if label in present] for label in range(len(CLASSES))]
    total = sum(len(frames) for frames in by_class)
    drawn: list[int] = []
    for frames in by_class:
        if frames:
            # CBGSDataset's order of operations, because the result is truncated to an integer
            ratio = (1.0 / len(CLASSES)) / (len(frames) / total)
            drawn += rng.choice(frames, int(len(frames) * ratio)).tolist()
    return drawn
