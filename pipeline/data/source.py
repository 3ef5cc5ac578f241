"""Sources of samples by index, and the one way to open them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.data.sample import MAX_SWEEPS, Sample


@dataclass(frozen=True)
class Reading:
    """What is read of a frame.

    Attributes:
        sweeps: earlier LiDAR scans, at most; nearest first.
        remove_close: drop the returns from the ego vehicle itself from them; CMT keeps them.
        min_points: boxes with fewer LiDAR points are left out; the official metric drops boxes
            without points too, and so does CMT's training (``use_valid_flag``).
        buffer: frames that a shuffle draws from at a time, see ``BatchOrder``; 0: all of them.
    """

    sweeps: int = MAX_SWEEPS
    remove_close: bool = False
    min_points: int = 1
    buffer: int = 0


READ_ALL = Reading()
"""What CMT's configs read."""


class Source(Protocol):
    """Samples by index, and the names that go with them."""

    @property
    def tokens(self) -> Sequence[str]:
        """Sample tokens, one a frame."""
        ...

    @property
    def scenes(self) -> Sequence[str]:
        """Scene names, one a frame."""
        ...

    @property
    def labels(self) -> Sequence[frozenset[int]]:
        """Labels that occur in each frame; no image or point is read for it."""
        ...

    @property
    def blocks(self) -> Sequence[int]:
        """How many frames lie together, block by block; empty if each can be read alone."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class JoinedSource:
    """Several sources, one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._where = [(source, i) for source in sources for i in range(len(source))]
        self.tokens = [token for source in sources for token in source.tokens]
        self.scenes = [scene for source in sources for scene in source.scenes]
        self._sources = sources

    @property
    def labels(self) -> Sequence[frozenset[int]]:
        """Labels that occur in each frame."""
        return [labels for source in self._sources for labels in source.labels]

    @property
    def blocks(self) -> Sequence[int]:
        """See ``Source``."""
        if not any(source.blocks for source in self._sources):
            return ()
        return [size for source in self._sources for size in source.blocks or [1] * len(source)]

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: int) -> Sample:
        source, inner = self._where[index]
        return source[inner]


def is_remote(root: str | Path) -> bool:
    """Tell whether a dataset is named by a URI (shards in an object store), not by a path."""
    return "://" in str(root)
