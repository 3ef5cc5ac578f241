"""The transformed samples of each training step, made by loader processes or in this one.

The frames of a step are a function of (seed, step) (``pipeline.data.loading.sampler``). Augmentation draws
from a generator that is seeded by (seed, epoch, frame).
"""

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from pipeline.data.loading.broken_frames import BrokenFrames
from pipeline.data.loading.prefetch import PrefetchBudget, size_of
from pipeline.data.loading.sampler import BatchOrder
from pipeline.data.sample import DataError, EpochTransform, Sample, Transform
from pipeline.data.source import Source

SHARED_BYTES = 2**15
"""Arrays of at least this size go through shared memory. Copying a smaller one is faster than mapping it."""


class _Batches(Dataset["_LoadedBatch"]):
    """Batches of transformed samples, addressed by (step, [(epoch, frame), ...]).

    A frame that cannot be read is replaced by the next readable one, at most ``skip`` times.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform | EpochTransform,
        seed: int,
        skip: int,
        first: int,
        budget: PrefetchBudget,
    ) -> None:
        self._source = source
        self._transform = transform
        self._seed = seed
        self._skip = skip
        self._first = first
        self._budget = budget

    def __getitem__(self, address: tuple[int, list[tuple[int, int]]]) -> "_LoadedBatch":
        step, places = address
        broken: dict[str, str] = {}
        try:
            samples = [self._sample(epoch, frame, broken) for epoch, frame in places]
            made = _LoadedBatch(step, _to_tensors(samples), broken)
        except DataError as problem:  # as a value, because torch would wrap the message in a traceback
            made = _LoadedBatch(step, [], broken, str(problem))
        process = get_worker_info()
        if process is not None:
            self._budget.wait_and_add(process.id, step - self._first, size_of(made.samples))
        return made

    def _sample(self, epoch: int, frame: int, broken: dict[str, str]) -> Sample:
        sample = self._read(frame, broken)
        # The 1 separates these draws from the permutations, which are seeded by (seed, epoch).
        rng = np.random.default_rng((self._seed, epoch, frame, 1))
        transform = self._transform
        return (transform.at(epoch) if isinstance(transform, EpochTransform) else transform)(sample, rng)

    def _read(self, frame: int, broken: dict[str, str]) -> Sample:
        for further in range(len(self._source)):
            place = (frame + further) % len(self._source)
            try:
                return self._source[place]
            except DataError as problem:
                broken[self._source.tokens[place]] = str(problem)
                if len(broken) > self._skip:
                    raise
        raise DataError(f"none of the {len(self._source)} frames can be read: {next(iter(broken.values()))}")


class _LoadedBatch(NamedTuple):
    """A batch as a loader process sends it.

    Attributes:
        step: the step of the batch.
        samples: the fields of each sample, large arrays as tensors.
        broken: token -> reason, for the frames that were skipped.
        error: the reason if there are no samples.
    """

    step: int
    samples: list[dict[str, Any]]
    broken: dict[str, str]
    error: str = ""


def training_batches(
    source: Source,
    order: BatchOrder,
    transform: Transform | EpochTransform,
    first_step: int,
    last_step: int,
    workers: int,
    broken: BrokenFrames | None = None,
    budget: PrefetchBudget | None = None,
) -> Generator[list[Sample], None, None]:
    """Yield the batches of the steps from ``first_step`` up to, not including, ``last_step``.

    The bytes that loader processes have ready are limited (``pipeline.data.loading.prefetch``).

    Args:
        source: frames.
        order: the frames of each step.
        transform: applied to every sample; see ``Transform`` and ``EpochTransform``.
        first_step: first step; 0 for a new run.
        last_step: end of the training.
        workers: number of loader processes; 0: load in this process.
        broken: records frames that cannot be read; None: the first one is an error.
        budget: limits the bytes of batches that are ready; None: the default limit.

    Raises:
        DataError: during iteration, if a frame cannot be read and may not be skipped.
    """
    broken = BrokenFrames() if broken is None else broken  # not `or`: an empty one is false
    budget = PrefetchBudget(workers) if budget is None else budget
    batches = _Batches(source, transform, order.seed, broken.limit, first_step, budget)
    loader = DataLoader(
        batches,
        batch_size=None,  # an item is a batch
        sampler=_Steps(order, first_step, last_step),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # otherwise the loader draws from the global random state
    )
    for made in loader:
        if workers:
            budget.remove(size_of(made.samples))
        for token, problem in made.broken.items() if broken.limit else ():
            broken.note(token, problem, made.step)
        if made.error:
            raise DataError(made.error)
        yield _to_samples(made.samples)


class _Steps(Sampler[Any]):
    """The addresses of the batches in the order of steps."""

    def __init__(self, order: BatchOrder, first: int, last: int) -> None:
        self._order, self._first, self._last = order, first, last

    def __iter__(self) -> Iterator[Any]:
        return ((step, self._order.batch(step)) for step in range(self._first, self._last))


def _as_it_is(made: Any) -> Any:
    return made


def _to_tensors(samples: list[Sample]) -> list[dict[str, Any]]:
    """Wrap large arrays as tensors, which a loader process sends through shared memory, not through a pipe.

    Two frames of 640 x 1600 with ten sweeps are 47 MB. Through a pipe they take a tenth of a second of the
    training process.
    """
    return [
        {
            name: torch.from_numpy(np.ascontiguousarray(value)) if _is_large(value) else value
            for name, value in vars(sample).items()
        }
        for sample in samples
    ]


def _is_large(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.nbytes >= SHARED_BYTES


def _to_samples(batch: list[dict[str, Any]]) -> list[Sample]:
    """Undo ``_to_tensors``, without a copy."""
    samples = []
    for made in batch:
        fields: dict[str, Any] = {
            name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in made.items()
        }
        samples.append(Sample(**fields))
    return samples


def _one_thread(_: int) -> None:
    """Prevent OpenCV and numpy's BLAS from starting a thread per core in every loader process."""
    cv2.setNumThreads(0)
    threadpool_limits(1)
