"""The interface of sources of samples, and what is read of a frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.data.sample import MAX_SWEEPS, Sample
from pipeline.storage.paths import resolve_path


@dataclass(frozen=True)
class Reading:
    """What is read of a frame.

    Attributes:
        sweeps: largest number of earlier LiDAR scans, nearest first.
        remove_close: drop returns from the ego vehicle itself from the sweeps; CMT keeps them.
        valid_only: drop boxes in which no LiDAR or radar point is, as the official metric does, and CMT's
            training (``use_valid_flag``).
        missing_cameras: ``refuse`` a frame without one of its six images, or show it ``black``.
        buffer: number of frames that are shuffled together, see ``BatchOrder``; 0: all of them.
        images: False: no image is read, and ``Sample.images`` has a height and width of 0.
    """

    sweeps: int = MAX_SWEEPS
    remove_close: bool = False
    valid_only: bool = True
    missing_cameras: str = "refuse"
    buffer: int = 0
    images: bool = True


READ_ALL = Reading()
"""The settings of CMT's configs."""


class Source(Protocol):
    """Samples by index, with their tokens, scenes and labels."""

    @property
    def tokens(self) -> Sequence[str]:
        """Sample token of every frame."""
        ...

    @property
    def scenes(self) -> Sequence[str]:
        """Scene name of every frame."""
        ...

    @property
    def labels(self) -> Sequence[frozenset[int]]:
        """Labels that occur in each frame. They are read without images and points."""
        ...

    @property
    def blocks(self) -> Sequence[int]:
        """Number of frames in each block that is read as a whole; empty if each frame is read separately."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class JoinedSource:
    """Several sources, concatenated."""

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
    """Whether a dataset is named by a URI (shards in an object store) and not by a path."""
    return "://" in str(root)


def place_of(root: str | Path) -> str | Path:
    """Return where a dataset of the settings is, wherever a worker runs: its URI, or an absolute path."""
    return root if is_remote(root) else resolve_path(root)
