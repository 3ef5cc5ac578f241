"""Loader: sources of samples, and the order in which training sees them.

The order is a function of (seed, step) alone: epoch after epoch of seeded permutations, cut into
batches, dealt to the ranks. So a run can go on at any step, no frame is lost or seen twice within
an epoch, and neither the number of loader processes nor that of ranks changes what a global batch
holds. Augmentation draws from a generator seeded by (seed, epoch, frame).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset

from pipeline.data.decode import load_sample
from pipeline.data.sample import DataError, Sample
from pipeline.data.tables import MAX_SWEEPS, FrameRecord, read_frames

Transform = Callable[[Sample, np.random.Generator], Sample]
"""What is done to a training sample; draws from the given generator alone."""


@runtime_checkable
class Schedule(Protocol):
    """A transform that changes with the epoch."""

    def at(self, epoch: int) -> Transform:
        """Return what is done to a sample in an epoch (from 0)."""
        ...


@dataclass(frozen=True)
class Reading:
    """What is read of a frame.

    Attributes:
        sweeps: earlier LiDAR scans, at most; nearest first.
        remove_close: drop the returns from the ego vehicle itself from them; CMT keeps them.
        min_points: boxes with fewer LiDAR points are left out; the official metric drops boxes
            without points too, and so does CMT's training (``use_valid_flag``).
    """

    sweeps: int = MAX_SWEEPS
    remove_close: bool = False
    min_points: int = 1


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


@dataclass(frozen=True)
class BatchOrder:
    """Which frames make up the batch of a step.

    The permutations of all epochs form one endless sequence; step s takes the next
    ``batch_size * world_size`` of it, and rank r its r-th run of ``batch_size``.

    Attributes:
        frames: number of frames in the source.
        batch_size: samples per rank.
        rank, world_size: place among the workers.
        seed: seeds the permutations.
    """

    frames: int
    batch_size: int
    rank: int
    world_size: int
    seed: int

    def batch(self, step: int) -> list[tuple[int, int]]:
        """Return (epoch, frame) of each sample of this rank in step ``step`` (from 0)."""
        first = (step * self.world_size + self.rank) * self.batch_size
        return [self._at(position) for position in range(first, first + self.batch_size)]

    def _at(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.frames)
        return epoch, int(_permutation(self.seed, epoch, self.frames)[place])


@lru_cache(maxsize=2)  # a batch touches two epochs at most, unless the source is tiny
def _permutation(seed: int, epoch: int, frames: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(frames)


class _TrainingFrames(Dataset[Sample]):
    """Transformed samples, addressed by (epoch, frame)."""

    def __init__(self, source: Source, transform: Transform | Schedule, seed: int) -> None:
        self._source = source
        self._transform = transform
        self._seed = seed

    def __getitem__(self, address: tuple[int, int]) -> Sample:
        epoch, frame = address
        # the 1 keeps this stream apart from the permutations', which are seeded by (seed, epoch)
        rng = np.random.default_rng((self._seed, epoch, frame, 1))
        transform = self._transform
        return (transform.at(epoch) if isinstance(transform, Schedule) else transform)(
            self._source[frame], rng
        )


def training_batches(
    source: Source,
    order: BatchOrder,
    transform: Transform | Schedule,
    first_step: int,
    last_step: int,
    workers: int,
) -> Iterator[list[Sample]]:
    """Yield the batches of steps ``first_step`` up to, not including, ``last_step``.

    Args:
        source: frames.
        order: which frames belong to a step.
        transform: applied to every sample; see ``Transform`` and ``Schedule``.
        first_step: step to go on at, 0 for a new run.
        last_step: where training ends.
        workers: loader processes; 0 loads in this one.
    """
    loader = DataLoader(
        _TrainingFrames(source, transform, order.seed),
        batch_sampler=(order.batch(step) for step in range(first_step, last_step)),
        num_workers=workers,
        collate_fn=_to_tensors,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # without it the loader draws from the global random state
    )
    return map(_to_samples, loader)


def _to_tensors(samples: list[Sample]) -> list[dict[str, Any]]:
    """Wrap the arrays of samples: tensors come from a loader process through shared memory, arrays by a pipe.

    Two frames of 640 x 1600 with ten sweeps are 47 MB, a tenth of a second of the training process.
    """
    return [
        {
            name: torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
            for name, value in vars(sample).items()
        }
        for sample in samples
    ]


def _to_samples(batch: list[dict[str, Any]]) -> list[Sample]:
    """Undo ``_to_tensors``; nothing is copied."""
    samples = []
    for made in batch:
        held: dict[str, Any] = {
            name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in made.items()
        }
        samples.append(Sample(**held))
    return samples


def _one_thread(_: int) -> None:
    """Keep OpenCV and numpy's BLAS from starting a thread per core in every loader process."""
    cv2.setNumThreads(0)
    threadpool_limits(1)
