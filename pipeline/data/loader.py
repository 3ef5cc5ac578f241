"""Loader: sources of samples by index, and the one way to open them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pipeline.data.decode import load_sample
from pipeline.data.sample import DataError, Sample
from pipeline.data.tables import MAX_SWEEPS, FrameRecord, read_frames


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


ALL = Reading()
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


class FileSource:
    """Samples read from the files of frame records.

    Args:
        records: frames, e.g. of ``read_frames``.
        reading: what is read of them.
    """

    def __init__(self, records: Sequence[FrameRecord], reading: Reading = ALL) -> None:
        self._records = [
            replace(record.with_points(reading.min_points), sweeps=record.sweeps[: reading.sweeps])
            for record in records
        ]
        self._remove_close = reading.remove_close
        self.tokens = [record.token for record in records]
        self.scenes = [record.scene for record in records]
        self.labels = [frozenset(record.labels.tolist()) for record in self._records]
        self.blocks: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        return load_sample(self._records[index], self._remove_close)


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


def open_source(root: str | Path, version: str, split: str, reading: Reading = ALL) -> Source:
    """Open a dataset: an info file (``.pkl``), a folder or URI of shards, or a root in nuScenes layout.

    Args:
        root: where it is.
        version: nuScenes version; names the tables folder.
        split: split of the official devkit.
        reading: what is read of a frame.

    Raises:
        DataError: nothing of the kind is there, or it holds no frame.
    """
    place = Path(root)
    if not is_remote(root) and not place.exists():
        raise DataError(f"{root}: no such dataset; `biaswise data synth` makes one")
    source: Source
    if place.suffix == ".pkl":
        from pipeline.data.infos import InfoSource  # it builds on this module

        source = InfoSource(place, reading=reading)
    elif (place / version).is_dir():
        source = FileSource(read_frames(place, version, split), reading)
    else:
        from pipeline.data.shards import ShardSource  # pyarrow only for those who shard

        source = ShardSource(root, split, reading)
    if len(source) == 0:
        raise DataError(f"{root}: no frame of split {split!r}")
    return source


def is_remote(root: str | Path) -> bool:
    """Tell whether a dataset is named by a URI (shards in an object store), not by a path."""
    return "://" in str(root)
