"""Predict: run a detector over a split under every sensor condition, each frame read once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from pipeline.data.failures import corrupt
from pipeline.data.loader import Source
from pipeline.data.sample import Detections, Sample
from pipeline.data.transforms import resize_crop
from pipeline.detector.batch import collate, to_detections
from pipeline.evaluate import FramePose
from pipeline.session import Session

BATCH = 4
"""Frames per forward pass; more gain little on a CPU and cost memory on a GPU."""

Found = dict[str, tuple[list[FramePose], list[Detections]]]
"""Condition -> poses and detections of all frames."""


class Detector:
    """A trained detector that turns samples of native size into detections.

    Args:
        model: the bare detector.
        size: (height, width) of its images, pixels.
        amp: bfloat16 autocast.
    """

    def __init__(self, model: Any, size: tuple[int, int], amp: bool = False) -> None:
        self._model = model
        self._size = size
        self._amp = amp
        self._device = next(model.parameters()).device.type

    def __call__(self, samples: Sequence[Sample]) -> list[Detections]:
        """Detect in frames of native size."""
        return self.run(self.prepare(samples))

    def prepare(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Resize and collate frames; what ``run`` takes."""
        return collate([resize_crop(sample, self._size) for sample in samples])

    def run(self, batch: Mapping[str, Any]) -> list[Detections]:
        """Detect in a prepared batch."""
        self._model.eval()
        with torch.inference_mode(), torch.autocast(self._device, torch.bfloat16, enabled=self._amp):
            prepared = self._model.data_preprocessor(batch, False)
            return to_detections(self._model(**prepared, mode="predict"))


def predict(
    detector: Callable[[Sequence[Sample]], list[Detections]],
    source: Source,
    conditions: Sequence[str],
    seed: int,
    session: Session,
    progress: Callable[[int], None] = lambda _: None,
) -> Found:
    """Detect in every frame of a source under every condition; the ranks share the frames.

    Args:
        detector: samples -> detections.
        source: frames.
        conditions: sensor conditions, names of ``pipeline.data.failures.CONDITIONS``.
        seed: seeds the corruptions.
        session: its ranks share the work; all of them call this.
        progress: told how many of this rank's frames are done.

    Returns:
        On rank 0 the detections of all frames; on other ranks those of their own.
    """
    found: Found = {condition: ([], []) for condition in conditions}
    done = 0
    for samples in _chunks(source, session.rank, session.world_size):
        for condition, (poses, detections) in found.items():
            detections += detector([corrupt(sample, condition, seed) for sample in samples])
            poses += [FramePose.of(sample) for sample in samples]
        done += len(samples)
        progress(done)
    return _gather(found, session)


def _chunks(source: Source, rank: int, world_size: int) -> Iterator[list[Sample]]:
    mine = range(rank, len(source), world_size)
    for start in range(0, len(mine), BATCH):
        yield [source[i] for i in mine[start : start + BATCH]]


def _gather(found: Found, session: Session) -> Found:
    if session.world_size == 1:
        return found
    parts: list[Any] | None = [None] * session.world_size if session.rank == 0 else None
    dist.gather_object(found, parts, dst=0)
    if parts is None:
        return found
    joined: Found = {condition: ([], []) for condition in found}
    for part in parts:
        for condition, (poses, detections) in part.items():
            joined[condition][0].extend(poses)
            joined[condition][1].extend(detections)
    return joined
