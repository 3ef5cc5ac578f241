"""The frames of each training step, as a function of (seed, step).

The seeded permutations of all epochs are concatenated, cut into batches and distributed to the ranks. So a
run can resume at any step, every frame occurs once per epoch, and the frames of a global batch depend neither
on the number of loader processes nor on that of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BatchOrder:
    """The frames in the batch of a step.

    The permutations of all epochs form one infinite sequence. Step s takes the next ``batch_size *
    world_size`` frames of it, and rank r the r-th ``batch_size`` of those.

    For files, and for row groups of one frame, all frames are permuted. If several frames are in one block,
    and reading one means reading all, ``buffer`` reduces reading at the price of randomness: the blocks are
    permuted, and frames are shuffled only within a buffer.

    Attributes:
        frames: number of frames in the source.
        batch_size: number of samples per rank.
        rank, world_size: this rank, and the number of ranks.
        seed: seed of the permutations.
        blocks: number of frames in each block, with the sum ``frames``; empty: no blocks.
        buffer: number of frames that are shuffled together; 0: all.
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
