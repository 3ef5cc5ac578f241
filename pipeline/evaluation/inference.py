"""Run a detector over a split under every sensor condition, each frame read once.

Conditions and plans that hand a branch the same input share its features: a dead LiDAR leaves the
images as they are, and a plan changes the decoder alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config.plan import Plan
from pipeline.data.augmentation.transforms import resize_crop
from pipeline.data.corruptions import corrupt
from pipeline.data.sample import Detections, Sample
from pipeline.data.source import Source
from pipeline.detector.openmmlab.data_samples import collate, to_detections
from pipeline.evaluation.submission import FramePose
from pipeline.runtime.session import Session

BATCH = 4
"""Frames per forward pass; more gain little on a CPU and cost memory on a GPU."""

DetectionsByCondition = dict[str, tuple[list[FramePose], list[Detections]]]
"""Condition -> poses and detections of all frames."""

Progress = Callable[[int], None]
"""Told how many of this rank's frames are done."""


@dataclass(frozen=True)
class EvaluationViews:
    """What a detector is shown: every frame of a source under every condition.

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

    def of(self, samples: Sequence[Sample]) -> dict[str, list[Sample]]:
        """Return condition -> the samples as the failing sensors give them."""
        return {name: [corrupt(sample, name, self.seed) for sample in samples] for name in self.conditions}


class Predictor:
    """A trained detector that turns samples into detections.

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
        self._features: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def prepare(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Resize and collate frames of native size; what ``run`` takes."""
        return collate([resize_crop(sample, self._size) for sample in samples])

    def resize(self, views: Mapping[str, Sequence[Sample]]) -> dict[str, list[Sample]]:
        """Bring views of frames to the size of the model's images; what two share they share afterwards."""
        small: dict[int, Sample] = {}
        for sample in chain(*views.values()):
            if id(sample.images) not in small:
                small[id(sample.images)] = resize_crop(sample, self._size)
        return {name: [_pictured(s, small[id(s.images)]) for s in samples] for name, samples in views.items()}

    def run(self, batch: Mapping[str, Any]) -> list[Detections]:
        """Detect in a prepared batch."""
        self._evaluating()
        with torch.inference_mode(), torch.autocast(self._device, torch.bfloat16, enabled=self._amp):
            prepared = self._model.data_preprocessor(batch, False)
            return to_detections(self._model(**prepared, mode="predict"))

    def _evaluating(self) -> None:
        if self._model.training:  # walking through all modules at every frame costs milliseconds
            self._model.eval()

    def compare(
        self, views: Mapping[str, Sequence[Sample]], plans: Sequence[Plan | None] = (None,)
    ) -> list[dict[str, list[Detections]]]:
        """Detect in several views of the same frames under several plans, each branch run once per input.

        Args:
            views: name -> the frames, already of the model's image size. What two views share they must
                share as objects, as ``corrupt`` leaves it.
            plans: each is applied to the model in turn, the last one stays; None is the plan it has.

        Returns:
            Per plan: view -> detections of its frames, the same as one ``run`` per view and plan gives.
        """
        self._evaluating()
        found = []
        with torch.inference_mode(), torch.autocast(self._device, torch.bfloat16, enabled=self._amp):
            read = {name: self._read(samples) for name, samples in views.items()}
            for plan in plans:
                if plan is not None:
                    self._model.apply_plan(plan, dtype="bfloat16" if self._amp else "float32")
                found.append({name: self._decode(*inputs) for name, inputs in read.items()})
        # an array's number is free again once the frame is gone; black images and no points stay
        self._features = {key: value for key, value in self._features.items() if not any(key[1])}
        return found

    def _read(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, list[Any]]:
        """Return BEV features, image features and data samples."""
        prepared = self._model.data_preprocessor(collate(samples), False)
        inputs, model = prepared["inputs"], self._model
        points = self._once(
            "points", [s.points for s in samples], lambda: model.point_features(inputs["points"])
        )
        images = self._once(
            "images", [s.images for s in samples], lambda: model.image_features(inputs["imgs"])
        )
        return points, images, prepared["data_samples"]

    def _once(self, branch: str, arrays: Sequence[NDArray[Any]], run: Callable[[], Tensor]) -> Tensor:
        """Run a branch unless it has seen these very arrays; all that hold nothing are alike."""
        key = (branch, tuple(id(array) if array.any() else 0 for array in arrays))
        if key not in self._features:
            self._features[key] = run()
        return self._features[key]

    def _decode(self, points: Tensor, images: Tensor, samples: list[Any]) -> list[Detections]:
        boxes = self._model.pts_bbox_head.predict(points, images, samples)
        return to_detections(self._model.add_pred_to_datasample(list(samples), boxes))


def predict(
    detector: Predictor, views: EvaluationViews, session: Session, progress: Progress = lambda _: None
) -> DetectionsByCondition:
    """Detect in every frame under every condition; the ranks share the frames.

    Args:
        detector: samples -> detections.
        views: frames and conditions.
        session: its ranks share the work; all of them call this.
        progress: see there.

    Returns:
        On rank 0 the detections of all frames; on other ranks those of their own.
    """
    (found,) = predict_each(detector, views, (None,), session, progress)
    return found


def predict_each(
    detector: Predictor,
    views: EvaluationViews,
    plans: Sequence[Plan | None],
    session: Session,
    progress: Progress = lambda _: None,
) -> list[DetectionsByCondition]:
    """Detect under every plan and condition, frames read and branches run once; see ``predict``.

    All detections stay in memory: about 50 bytes a box, frame, condition and plan.

    Returns:
        Per plan what ``predict`` returns.
    """
    every: list[DetectionsByCondition] = [
        {condition: ([], []) for condition in views.conditions} for _ in plans
    ]
    done = 0
    for samples in views.chunks(session.rank, session.world_size):
        poses = [FramePose.of(sample) for sample in samples]
        shown = detector.resize(views.of(samples))
        for found, detections in zip(every, detector.compare(shown, plans), strict=True):
            for condition, new in detections.items():
                found[condition][0].extend(poses)
                found[condition][1].extend(new)
        done += len(samples)
        progress(done)
    return [_gather(found, session) for found in every]


def _pictured(sample: Sample, resized: Sample) -> Sample:
    """Return a sample with the images of its resized twin, which may have other points."""
    return replace(sample, images=resized.images, lidar2img=resized.lidar2img)


def _gather(found: DetectionsByCondition, session: Session) -> DetectionsByCondition:
    if session.world_size == 1:
        return found
    parts: list[Any] | None = [None] * session.world_size if session.rank == 0 else None
    dist.gather_object(found, parts, dst=0)
    if parts is None:
        return found
    joined: DetectionsByCondition = {condition: ([], []) for condition in found}
    for part in parts:
        for condition, (poses, detections) in part.items():
            joined[condition][0].extend(poses)
            joined[condition][1].extend(detections)
    return joined
