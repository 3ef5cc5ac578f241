"""CBGS - frames drawn so that every class is met equally often (Zhu et al., arXiv:1908.09492)."""

from collections.abc import Sequence

import numpy as np

from pipeline.config.settings import CLASSES
from pipeline.data.sample import Sample
from pipeline.data.source import Source

STREAM = 2
"""Keeps these draws apart from the loader's, seeded by (seed, epoch) and by (seed, epoch, frame, 1)."""


class BalancedSource:
    """A source in which frames recur, as mmdet3d's CBGSDataset resamples a dataset.

    n_c frames hold a class c, N is the sum of all n_c (a frame counts once for each of its classes).
    N / 10 of them are drawn for every class, with replacement, among those that hold it. A class that
    no frame holds draws nothing (mmdet3d divides by zero). Drawn once, from the seed: every epoch goes
    through the same frames, and augments each occurrence in its own way.

    Args:
        source: frames.
        seed: decides what is drawn.
    """

    def __init__(self, source: Source, seed: int) -> None:
        self._source = source
        self.frames = resample(source.labels, seed)
        self.tokens = [source.tokens[i] for i in self.frames]
        self.scenes = [source.scenes[i] for i in self.frames]
        self.blocks: Sequence[int] = ()

    @property
    def labels(self) -> Sequence[frozenset[int]]:
        """Labels that occur in each frame."""
        held = self._source.labels
        return [held[i] for i in self.frames]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        return self._source[self.frames[index]]


def resample(labels: Sequence[frozenset[int]], seed: int) -> list[int]:
    """Draw frames, class by class.

    Args:
        labels: of each frame.
        seed: decides what is drawn.
    """
    rng = np.random.default_rng((seed, 0, 0, STREAM))
    holders = [[i for i, held in enumerate(labels) if label in held] for label in range(len(CLASSES))]
    total = sum(len(frames) for frames in holders)
    drawn: list[int] = []
    for frames in holders:
        if frames:
            # the order of CBGSDataset's operations, because the result is cut to an integer
            ratio = (1.0 / len(CLASSES)) / (len(frames) / total)
            drawn += rng.choice(frames, int(len(frames) * ratio)).tolist()
    return drawn
