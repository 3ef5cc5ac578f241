"""Which frames a step trains on, as a function of (seed, step) alone.

Epoch after epoch of seeded permutations, cut into batches, dealt to the ranks. So a run can go on at any
step, no frame is lost or seen twice within an epoch, and neither the number of loader processes nor that of
ranks changes what a global batch holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BatchOrder:
    """Which frames make up the batch of a step.

    The permutations of all epochs form one endless sequence; step s takes the next
    ``batch_size * world_size`` of it, and rank r its r-th run of ``batch_size``.

    A permutation of all frames is what files and row groups of one frame want. Where several frames lie
    together and reading one costs reading all, ``buffer`` trades randomness for reading: the blocks are
    permuted, and a frame changes places with those of its buffer alone.

    Attributes:
        frames: number of frames in the source.
        batch_size: samples per rank.
        rank, world_size: place among the workers.
        seed: seeds the permutations.
        blocks: how many frames lie together, block by block; together ``frames``, or empty.
        buffer: frames that are shuffled among one another; 0: all.
    """

    frames: int
    batch_size: int
    rank: int
    world_size: int
    seed: int
    blocks: tuple[int, ...] = ()
    buffer: int = 0
    _held: dict[int, NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.blocks and sum(self.blocks) != self.frames:
            raise ValueError(f"blocks hold {sum(self.blocks)} frames, the source {self.frames}")

    def batch(self, step: int) -> list[tuple[int, int]]:
        """Return (epoch, frame) of each sample of this rank in step ``step`` (from 0)."""
        first = (step * self.world_size + self.rank) * self.batch_size
        return [self._at(position) for position in range(first, first + self.batch_size)]

    def _at(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.frames)
        if epoch not in self._held:
            while len(self._held) > 1:  # a batch touches two epochs at most, unless the source is tiny
                self._held.pop(next(iter(self._held)))
            self._held[epoch] = permutation(self.seed, epoch, self.frames, self.blocks, self.buffer)
        return epoch, int(self._held[epoch][place])


def permutation(
    seed: int, epoch: int, frames: int, blocks: Sequence[int] = (), buffer: int = 0
) -> NDArray[np.int64]:
    """Return the order of an epoch; see ``BatchOrder``."""
    rng = np.random.default_rng((seed, epoch))
    if not blocks or not 0 < buffer < frames:
        return rng.permutation(frames)
    ends = np.cumsum(blocks)
    drawn = rng.permutation(len(blocks))
    order = np.concatenate([np.arange(ends[block] - blocks[block], ends[block]) for block in drawn])
    for first in range(0, frames, buffer):
        rng.shuffle(order[first : first + buffer])
    return order
