"""The samples of each step, transformed, made by loader processes or in this one.

Which frames a step holds is a function of (seed, step) alone (``pipeline.data.loading.sampler``), and
augmentation draws from a generator seeded by (seed, epoch, frame).
"""

from collections.abc import Iterator
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
"""Arrays from here on come through shared memory; opening and mapping it costs more than a small copy."""


class _Batches(Dataset["_LoadedBatch"]):
    """Batches of transformed samples, addressed by (step, (epoch, frame) of each).

    What cannot be read is replaced by the next frame that can, if ``skip`` allows it.
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
        except DataError as problem:  # as a value: torch would wrap the sentence into a traceback
            made = _LoadedBatch(step, [], broken, str(problem))
        process = get_worker_info()
        if process is not None:
            self._budget.wait_and_add(process.id, step - self._first, size_of(made.samples))
        return made

    def _sample(self, epoch: int, frame: int, broken: dict[str, str]) -> Sample:
        sample = self._read(frame, broken)
        # the 1 keeps this stream apart from the permutations', which are seeded by (seed, epoch)
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
    """A batch as a loader process hands it over.

    Attributes:
        step: which.
        samples: their fields, large arrays as tensors.
        broken: token -> why, of the frames that were skipped.
        error: why there are no samples.
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
) -> Iterator[list[Sample]]:
    """Yield the batches of steps ``first_step`` up to, not including, ``last_step``.

    What loader processes have ready is bounded in bytes (``pipeline.data.loading.prefetch``).

    Args:
        source: frames.
        order: which frames belong to a step.
        transform: applied to every sample; see ``Transform`` and ``EpochTransform``.
        first_step: step to go on at, 0 for a new run.
        last_step: where training ends.
        workers: loader processes; 0 loads in this one.
        broken: takes note of frames that cannot be read; None: the first one stops.
        budget: bounds what lies ready; None: the default.

    Raises:
        DataError: while iterating, if a frame cannot be read and may not be skipped.
    """
    broken = BrokenFrames() if broken is None else broken  # an empty one is false
    budget = PrefetchBudget(workers) if budget is None else budget
    batches = _Batches(source, transform, order.seed, broken.limit, first_step, budget)
    loader = DataLoader(
        batches,
        batch_size=None,  # an item is a batch
        sampler=_Steps(order, first_step, last_step),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # without it the loader draws from the global random state
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
    """The addresses of the batches, one step after the other."""

    def __init__(self, order: BatchOrder, first: int, last: int) -> None:
        self._order, self._first, self._last = order, first, last

    def __iter__(self) -> Iterator[Any]:
        return ((step, self._order.batch(step)) for step in range(self._first, self._last))


def _as_it_is(made: Any) -> Any:
    return made


def _to_tensors(samples: list[Sample]) -> list[dict[str, Any]]:
    """Wrap large arrays: tensors come from a loader process through shared memory, arrays by a pipe.

    Two frames of 640 x 1600 with ten sweeps are 47 MB, a tenth of a second of the training process.
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
