"""Frames of a split under sensor conditions, and what each branch of a detector reads of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from pipeline.data.corruptions import corrupt
from pipeline.data.sample import Sample
from pipeline.data.source import Source

BATCH = 4
"""Frames per forward pass; more gain little on a CPU and cost memory on a GPU."""

UNCHANGED, EMPTY = "unchanged", "empty"
"""Contents of an input that a condition leaves as it was, or leaves without any information."""


@dataclass(frozen=True)
class BranchInput:
    """Identifies what a branch reads of one frame: equal ones hold equal arrays.

    Attributes:
        token: of the frame; empty if the input is, since all empty inputs are alike.
        content: ``UNCHANGED``, ``EMPTY``, or the condition that changed it.
    """

    token: str
    content: str


@dataclass(frozen=True)
class View:
    """One frame under one condition.

    Attributes:
        sample: the frame as the sensors give it.
        images: what the image branch reads of it.
        points: what the LiDAR branch reads of it.
    """

    sample: Sample
    images: BranchInput
    points: BranchInput

    @classmethod
    def of(cls, sample: Sample, condition: str, seed: int) -> "View":
        """Put a frame under a condition, with what fails drawn from ``seed``."""
        given = corrupt(sample, condition, seed)

        def branch_input(before: NDArray[Any], after: NDArray[Any]) -> BranchInput:
            if after is before:
                return BranchInput(sample.token, UNCHANGED)
            return BranchInput(sample.token, condition) if after.any() else BranchInput("", EMPTY)

        return cls(
            given, branch_input(sample.images, given.images), branch_input(sample.points, given.points)
        )


@dataclass(frozen=True)
class EvaluationViews:
    """Every frame of a source under every condition.

    Attributes:
        source: frames of native size.
        conditions: sensor conditions, names of ``pipeline.data.corruptions.CONDITIONS``.
        seed: seeds the corruptions.
    """

    source: Source
    conditions: tuple[str, ...]
    seed: int

    def chunks(self, rank: int, world_size: int) -> Iterator[list[Sample]]:
        """Yield the frames of a rank, a few at a time."""
        mine = range(rank, len(self.source), world_size)
        for start in range(0, len(mine), BATCH):
            yield [self.source[i] for i in mine[start : start + BATCH]]

    def of(self, samples: Sequence[Sample]) -> dict[str, list[View]]:
        """Return condition -> the samples under it."""
        return {name: [View.of(sample, name, self.seed) for sample in samples] for name in self.conditions}


def with_images(view: View, resized: Sample) -> View:
    """Return a view with resized images; ``resized`` may have other points."""
    return replace(view, sample=replace(view.sample, images=resized.images, lidar2img=resized.lidar2img))
