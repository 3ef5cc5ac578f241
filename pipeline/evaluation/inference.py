"""Run a detector over a split under every sensor condition, each frame read once.

Conditions that give a branch the same input share its features: a dead LiDAR leaves the images as they are.
Plans share the features of both branches, because a plan changes only what follows them.
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
from pipeline.detector.precision import attention_dtype, autocast
from pipeline.evaluation.submission import FramePose
from pipeline.runtime.session import Session

BATCH = 4
"""Frames per forward pass; more gain little on a CPU and cost memory on a GPU."""

DetectionsByCondition = dict[str, tuple[list[FramePose], list[Detections]]]
"""Condition -> poses and detections of all frames."""

Progress = Callable[[int], None]
"""Gets how many of this rank's frames are done."""

UNCHANGED, EMPTY = "unchanged", "empty"
"""Contents of an input that a condition leaves as it was, or leaves without any information."""


@dataclass(frozen=True)
class BranchInput:
    """Identifies what a branch reads of one frame: equal ones hold equal arrays.

    Attributes:
        token: of the frame; empty if the input is, since all empty inputs are alike.
        content: ``UNCHANGED``, ``EMPTY``, or the condition that changed it.
    """

    token: str
    content: str


@dataclass(frozen=True)
class View:
    """One frame under one condition.

    Attributes:
        sample: the frame as the sensors give it.
        images: what the image branch reads of it.
        points: what the LiDAR branch reads of it.
    """

    sample: Sample
    images: BranchInput
    points: BranchInput

    @classmethod
    def of(cls, sample: Sample, condition: str, seed: int) -> "View":
        """Put a frame under a condition, with what fails drawn from ``seed``."""
        given = corrupt(sample, condition, seed)

        def branch_input(before: NDArray[Any], after: NDArray[Any]) -> BranchInput:
            if after is before:
                return BranchInput(sample.token, UNCHANGED)
            return BranchInput(sample.token, condition) if after.any() else BranchInput("", EMPTY)

        return cls(
            given, branch_input(sample.images, given.images), branch_input(sample.points, given.points)
        )


@dataclass(frozen=True)
class EvaluationViews:
    """Every frame of a source under every condition.

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

    def of(self, samples: Sequence[Sample]) -> dict[str, list[View]]:
        """Return condition -> the samples under it."""
        return {name: [View.of(sample, name, self.seed) for sample in samples] for name in self.conditions}


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
        self._empty: dict[tuple[str, int], Tensor] = {}  # (branch, frames) -> features of empty inputs

    def prepare(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Resize and collate frames of native size; what ``run`` takes."""
        return collate([resize_crop(sample, self._size) for sample in samples])

    def resize(self, views: Mapping[str, Sequence[View]]) -> dict[str, list[View]]:
        """Bring the images of views to the size of the model's; the same images are resized once."""
        small: dict[tuple[str, str], Sample] = {}
        for view in chain(*views.values()):
            key = view.sample.token, view.images.content
            if key not in small:
                small[key] = resize_crop(view.sample, self._size)
        return {
            name: [_with_images(view, small[view.sample.token, view.images.content]) for view in shown]
            for name, shown in views.items()
        }

    def run(self, batch: Mapping[str, Any]) -> list[Detections]:
        """Detect in a prepared batch."""
        self._evaluating()
        with torch.inference_mode(), autocast(self._device, self._amp):
            prepared = self._model.data_preprocessor(batch, False)
            return to_detections(self._model(**prepared, mode="predict"))

    def _evaluating(self) -> None:
        if self._model.training:  # walking through all modules at every frame costs milliseconds
            self._model.eval()

    def compare(
        self, views: Mapping[str, Sequence[View]], plans: Sequence[Plan | None] = (None,)
    ) -> list[dict[str, list[Detections]]]:
        """Detect in several views of the same frames under several plans; each branch runs once per input.

        Args:
            views: name -> the frames, already of the model's image size.
            plans: each is applied to the model in turn, and the last one stays; None is the plan it has.

        Returns:
            Per plan: view -> detections of its frames, the same as one ``run`` per view and plan gives.
        """
        self._evaluating()
        found: list[dict[str, list[Detections]]] = []
        features: _Features = {}
        with torch.inference_mode(), autocast(self._device, self._amp):
            read = {name: self._read(shown, features) for name, shown in views.items()}
            for plan in plans:
                if plan is not None:
                    self._model.apply_plan(plan, dtype=attention_dtype(self._amp))
                found.append({name: self._decode(*inputs) for name, inputs in read.items()})
        return found

    def _read(self, views: Sequence[View], features: "_Features") -> tuple[Tensor, Tensor, list[Any]]:
        """Return BEV features, image features and data samples."""
        prepared = self._model.data_preprocessor(collate([view.sample for view in views]), False)
        inputs, model = prepared["inputs"], self._model
        points = self._once(
            "points", [v.points for v in views], lambda: model.point_features(inputs["points"]), features
        )
        images = self._once(
            "images", [v.images for v in views], lambda: model.image_features(inputs["imgs"]), features
        )
        return points, images, prepared["data_samples"]

    def _once(
        self, branch: str, read: Sequence[BranchInput], run: Callable[[], Tensor], features: "_Features"
    ) -> Tensor:
        """Run a branch, unless these frames were read before; features of empty inputs are kept for good."""
        if all(one.content == EMPTY for one in read):
            if (branch, len(read)) not in self._empty:
                self._empty[branch, len(read)] = run()
            return self._empty[branch, len(read)]
        key = (branch, tuple(read))
        if key not in features:
            features[key] = run()
        return features[key]

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
        progress: called after every few frames.

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
    """Detect in every frame under every plan and condition; the ranks share the frames.

    Frames are read and branches run once for all plans. All detections stay in memory: about 50 bytes a box,
    frame, condition and plan.

    Args:
        detector: samples -> detections.
        views: frames and conditions.
        plans: each is applied in turn; None is the plan that the model has.
        session: its ranks share the work; all of them call this.
        progress: called after every few frames.

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


_Features = dict[tuple[str, tuple[BranchInput, ...]], Tensor]
"""(branch, what it reads of each frame) -> its features."""


def _with_images(view: View, resized: Sample) -> View:
    """Return a view with resized images; ``resized`` may have other points."""
    return replace(view, sample=replace(view.sample, images=resized.images, lidar2img=resized.lidar2img))


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
