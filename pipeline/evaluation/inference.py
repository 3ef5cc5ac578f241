"""Run a detector over a split under every sensor condition, each frame read once.

Conditions that give a branch the same input share its features: a dead LiDAR leaves the images as they are.
The arms of a cohort share the features of the trunk, and the plans of one model those of both branches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config.plan import Plan
from pipeline.data.augmentation.transforms import resize_crop
from pipeline.data.sample import Detections, Sample
from pipeline.detector.openmmlab.data_samples import collate, to_detections
from pipeline.detector.precision import attention_dtype, autocast
from pipeline.evaluation.shared_features import FeatureCache, SharedFeatures
from pipeline.evaluation.submission import FramePose
from pipeline.evaluation.views import EvaluationViews, View, with_images
from pipeline.runtime.session import Session

DetectionsByCondition = dict[str, tuple[list[FramePose], list[Detections]]]
"""Condition -> poses and detections of all frames."""

Features = tuple[Tensor, Tensor, list[Any]]
"""BEV features, image features, and the data samples of mmdet3d."""

MOST_KEYS = 2**19
"""Keys of frames that are decoded together on a GPU: those of 164 frames of the mini, or of 23 of the
ResNet-50 model. With a quarter of it an H200 worked in 4 to 34 % of the time (docs/log.md, 2026-11-30)."""

Progress = Callable[[int], None]
"""Gets how many of this rank's frames are done."""


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
            name: [with_images(view, small[view.sample.token, view.images.content]) for view in shown]
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

    def same_weights(self) -> AbstractContextManager[None]:
        """Within it, what equal cameras decide is computed once; the views of a frame have the same."""
        same: AbstractContextManager[None] = self.model.pts_bbox_head.same_weights()
        return same

    def decode(self, points: Tensor, images: Tensor, samples: list[Any]) -> list[Detections]:
        """Return the detections of mmdet3d's data samples from BEV and image features."""
        boxes = self.model.pts_bbox_head.predict(points, images, samples)
        return to_detections(self.model.add_pred_to_datasample(list(samples), boxes))


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
        read = {name: _Read.of(lead.model, shown, shared.of_trunk) for name, shown in views.items()}
        for detector in detectors:
            detector.evaluating()
            detector.use_plan()
            with detector.same_weights():
                found.append(_detect(detector, read, shared.of(detector.model)))
    return found


BranchFeatures = dict[str, tuple[Tensor, Tensor]]
"""View -> BEV features and image features of its frames."""


def _detect(
    detector: Predictor, read: Mapping[str, "_Read"], own: FeatureCache
) -> dict[str, list[Detections]]:
    """Return the detections of a detector in each view, from the trunk's output."""
    features = {name: one.after_trunk(detector.model, own) for name, one in read.items()}
    return {
        name: detections for group in _groups(features) for name, detections in _decode(detector, group, read)
    }


def _groups(features: BranchFeatures) -> Iterator[BranchFeatures]:
    """Yield the views in groups that are decoded together: each by itself on a CPU, whose bits stay.

    On a GPU the host bounds the decoder of a small model: it launches as many kernels for one view as for
    five. A group there has at most ``MOST_KEYS`` keys, or one view.
    """
    group: BranchFeatures = {}
    keys = 0
    for name, (points, images) in features.items():
        more = sum(maps.numel() // maps.shape[1] for maps in (points, images) if maps.numel())
        if group and (not points.is_cuda or keys + more > MOST_KEYS):
            yield group
            group, keys = {}, 0
        group[name] = (points, images)
        keys += more
    yield group


def _decode(
    detector: Predictor, group: BranchFeatures, read: Mapping[str, "_Read"]
) -> Iterator[tuple[str, list[Detections]]]:
    """Yield the detections of each view of a group."""
    samples = [sample for name in group for sample in read[name].samples]
    points, images = (
        parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*group.values(), strict=True)
    )
    decoded = iter(detector.decode(points, images, samples))
    for name in group:
        yield name, list(islice(decoded, len(read[name].samples)))


@dataclass(frozen=True)
class _Read:
    """Frames of one view after the trunk: its features, what they were read from, mmdet3d's samples."""

    views: Sequence[View]
    stages: tuple[int, int]
    images: Any
    points: Any
    samples: list[Any]

    @classmethod
    def of(cls, model: Any, views: Sequence[View], features: FeatureCache) -> "_Read":
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

    def after_trunk(self, model: Any, features: FeatureCache) -> tuple[Tensor, Tensor]:
        """Return BEV features and image features of a model."""
        images, points = self.stages
        bev = features.once(
            "points",
            [v.points for v in self.views],
            lambda: model.points_after(self.points, points),
        )
        maps = features.once(
            "images",
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
