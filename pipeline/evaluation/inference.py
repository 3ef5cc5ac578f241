"""Run a detector over a split under every sensor condition, each frame read once.

Conditions that give a branch the same input share its features: a dead LiDAR leaves the images as they are.
The arms of a cohort share the features of the trunk, and the plans of one model those of both branches.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
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

Features = tuple[Tensor, Tensor, list[Any]]
"""BEV features, image features, and the data samples of mmdet3d."""

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
        plan: under which it detects in ``compare``; None: the plan that the model has.
    """

    def __init__(
        self, model: Any, size: tuple[int, int], amp: bool = False, plan: Plan | None = None
    ) -> None:
        self.model = model
        self.amp = amp
        self._size = size
        self._plan = plan
        self.device = next(model.parameters()).device.type

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
        self.evaluating()
        with torch.inference_mode(), autocast(self.device, self.amp):
            prepared = self.model.data_preprocessor(batch, False)
            return to_detections(self.model(**prepared, mode="predict"))

    def read(self, batch: Mapping[str, Any]) -> Features:
        """Run both branches on a prepared batch; ``run`` is this and ``detect``."""
        self.evaluating()
        with torch.inference_mode(), autocast(self.device, self.amp):
            prepared = self.model.data_preprocessor(batch, False)
            return (*self.model.extract_feat(prepared["inputs"]), prepared["data_samples"])

    def detect(self, features: Features) -> list[Detections]:
        """Detect in what ``read`` returned, under the plan that the model has now."""
        with torch.inference_mode(), autocast(self.device, self.amp):
            return self.decode(*features)

    def evaluating(self) -> None:
        """Put the model into evaluation mode."""
        if self.model.training:  # walking through all modules at every frame costs milliseconds
            self.model.eval()

    def use_plan(self) -> None:
        """Put the predictor's plan on the model, if it has one."""
        if self._plan is not None:
            self.model.apply_plan(self._plan, dtype=attention_dtype(self.amp))

    def decode(self, points: Tensor, images: Tensor, samples: list[Any]) -> list[Detections]:
        """Return the detections of mmdet3d's data samples from BEV and image features."""
        boxes = self.model.pts_bbox_head.predict(points, images, samples)
        return to_detections(self.model.add_pred_to_datasample(list(samples), boxes))


class SharedFeatures:
    """Features of branches, each computed once per input.

    The weights must stay as they are while it lives: features of empty inputs are kept as long.
    """

    def __init__(self) -> None:
        self._of_frames: dict[tuple[Hashable, tuple[BranchInput, ...]], Any] = {}
        self._of_nothing: dict[tuple[Hashable, int], Any] = {}

    def forget_frames(self) -> None:
        """Forget all features but those of empty inputs."""
        self._of_frames.clear()

    def once(self, owner: Hashable, read: Sequence[BranchInput], run: Callable[[], Any]) -> Any:
        """Run a branch, or a part of one, unless these frames were read before.

        Args:
            owner: identifies what runs.
            read: what it reads of each frame.
            run: runs it.
        """
        if all(one.content == EMPTY for one in read):
            if (owner, len(read)) not in self._of_nothing:
                self._of_nothing[owner, len(read)] = run()
            return self._of_nothing[owner, len(read)]
        key = (owner, tuple(read))
        if key not in self._of_frames:
            self._of_frames[key] = run()
        return self._of_frames[key]


def compare(
    detectors: Sequence[Predictor],
    views: Mapping[str, Sequence[View]],
    features: SharedFeatures | None = None,
) -> list[dict[str, list[Detections]]]:
    """Detect in several views of the same frames with several detectors; what they share runs once per input.

    Args:
        detectors: models with one trunk, or one model under several plans, of which the last stays on it.
        views: name -> the frames, already of the models' image size.
        features: shared between calls; None: nothing is.

    Returns:
        Per detector: view -> detections of its frames, the same as one ``run`` per view gives.
    """
    lead, shared = detectors[0], features or SharedFeatures()
    shared.forget_frames()
    found: list[dict[str, list[Detections]]] = []
    with torch.inference_mode(), autocast(lead.device, lead.amp):
        lead.evaluating()
        read = {name: _Read.of(lead.model, shown, shared) for name, shown in views.items()}
        for detector in detectors:
            detector.evaluating()
            detector.use_plan()
            model = detector.model
            found.append(
                {
                    name: detector.decode(*one.after_trunk(model, shared), one.samples)
                    for name, one in read.items()
                }
            )
    return found


@dataclass(frozen=True)
class _Read:
    """Frames of one view after the trunk: its features, what they were read from, mmdet3d's samples."""

    views: Sequence[View]
    stages: tuple[int, int]
    images: Any
    points: Any
    samples: list[Any]

    @classmethod
    def of(cls, model: Any, views: Sequence[View], features: SharedFeatures) -> "_Read":
        prepared = model.data_preprocessor(collate([view.sample for view in views]), False)
        inputs, (images, points) = prepared["inputs"], model.active_trunk
        return cls(
            views,
            (images, points),
            features.once(
                "images", [v.images for v in views], lambda: model.images_before(inputs["imgs"], images)
            ),
            features.once(
                "points", [v.points for v in views], lambda: model.points_before(inputs["points"], points)
            ),
            prepared["data_samples"],
        )

    def after_trunk(self, model: Any, features: SharedFeatures) -> tuple[Tensor, Tensor]:
        """Return BEV features and image features of a model."""
        images, points = self.stages
        bev = features.once(
            (id(model), "points"),
            [v.points for v in self.views],
            lambda: model.points_after(self.points, points),
        )
        maps = features.once(
            (id(model), "images"),
            [v.images for v in self.views],
            lambda: model.images_after(self.images, images),
        )
        return bev, maps


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
    (found,) = predict_each((detector,), views, session, progress)
    return found


def predict_each(
    detectors: Sequence[Predictor],
    views: EvaluationViews,
    session: Session,
    progress: Progress = lambda _: None,
) -> list[DetectionsByCondition]:
    """Detect in every frame under every condition with several detectors; the ranks share the frames.

    Frames are read once, and what the detectors share runs once. All detections stay in memory: about 50
    bytes a box, frame, condition and detector.

    Args:
        detectors: see ``compare``.
        views: frames and conditions.
        session: its ranks share the work; all of them call this.
        progress: called after every few frames.

    Returns:
        Per detector what ``predict`` returns.
    """
    every: list[DetectionsByCondition] = [
        {condition: ([], []) for condition in views.conditions} for _ in detectors
    ]
    features, done = SharedFeatures(), 0
    for samples in views.chunks(session.rank, session.world_size):
        poses = [FramePose.of(sample) for sample in samples]
        shown = detectors[0].resize(views.of(samples))
        for found, detections in zip(every, compare(detectors, shown, features), strict=True):
            for condition, new in detections.items():
                found[condition][0].extend(poses)
                found[condition][1].extend(new)
        done += len(samples)
        progress(done)
    return [_gather(found, session) for found in every]


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
