"""GT sampling - objects of other frames put into a frame, in its points and in its images.

Meaning: junjie18/CMT, UnifiedObjectSample and UnifiedDataBaseSampler. One slip there is not followed:
its copies of the frame's own objects are views into the image that is being painted, so a near object
of the frame does not cover a pasted one behind it; here it does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config.settings import CLASSES
from pipeline.data.augmentation.object_database import ObjectDatabase, open_database
from pipeline.data.augmentation.pipeline_steps import check_order
from pipeline.data.augmentation.transforms import image_rectangles
from pipeline.data.boxes import overlap_bev, points_inside
from pipeline.data.sample import DataError, Sample
from pipeline.storage.paths import ROOT

SAMPLER_KEYS = {
    "type", "data_root", "info_path", "rate", "prepare", "classes", "sample_groups", "points_loader",
}  # fmt: skip


@dataclass(frozen=True)
class UnifiedObjectSample:
    """Paste objects of a database until each class has its number; none may overlap another from above.

    Attributes:
        db_sampler: ``info_path`` (a database folder or dbinfos ``.pkl``), ``sample_groups`` (class ->
            number a frame should have), ``rate`` (share of what is missing), ``prepare``
            (``filter_by_min_points``, ``filter_by_difficulty``), ``classes``.
        sample_2d: paste pictures too.
        sample_method: ``depth``: far ones first; else in the order of the boxes.
        modify_points: drop the points that a pasted picture hides.
        mixup_rate: share of the new in a pasted pixel; negative: all of it.
    """

    db_sampler: Mapping[str, Any]
    sample_2d: bool = False
    sample_method: str = "depth"
    modify_points: bool = False
    mixup_rate: float = -1

    def __post_init__(self) -> None:
        unread = set(self.db_sampler) - SAMPLER_KEYS
        missing = {"info_path", "sample_groups"} - set(self.db_sampler)
        if unread or missing:
            what = f"unknown keys {sorted(unread)}" if unread else f"{sorted(missing)} is missing"
            raise DataError(f"UnifiedObjectSample: db_sampler: {what}; its keys are {sorted(SAMPLER_KEYS)}")
        check_order("UnifiedObjectSample", self.db_sampler.get("classes", CLASSES))
        odd = [name for name in self.db_sampler["sample_groups"] if name not in CLASSES]
        if odd:
            raise DataError(
                f"UnifiedObjectSample: sample_groups names {odd[0]!r}; expected {', '.join(CLASSES)}"
            )

    @cached_property
    def database(self) -> ObjectDatabase:
        """The objects to choose from, opened on first use."""
        root = self.db_sampler.get("data_root")
        return open_database(ROOT / self.db_sampler["info_path"], None if root is None else ROOT / root)

    @cached_property
    def pools(self) -> Mapping[int, NDArray[np.int64]]:
        """Label -> objects with enough points, in the order of ``sample_groups``."""
        prepare = self.db_sampler.get("prepare", {})
        unknown = set(prepare) - {"filter_by_difficulty", "filter_by_min_points"}
        if unknown or 0 in prepare.get("filter_by_difficulty", ()):
            raise DataError(
                f"UnifiedObjectSample: db_sampler.prepare is {dict(prepare)}; expected filter_by_min_points "
                "and filter_by_difficulty without 0, which is the difficulty of everything in nuScenes"
            )
        least = prepare.get("filter_by_min_points", {})
        pools = {}
        for name in self.db_sampler["sample_groups"]:
            label = CLASSES.index(name)
            enough = self.database.num_points >= int(least.get(name, 0))
            pools[label] = np.flatnonzero((self.database.labels == label) & enough)
        return pools

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draw and paste."""
        chosen = self.draw(sample, rng)
        if not len(chosen):
            return sample
        boxes, database = self.database.boxes[chosen], self.database
        kept = np.ones(len(sample.points), bool)
        for box in boxes:
            kept[points_inside(sample.points, box)] = False
        clouds = [sample.points[kept]]
        for index, box in zip(chosen, boxes, strict=True):
            cloud = database.points(int(index)).copy()
            cloud[:, :3] += box[:3]
            clouds.append(cloud)
        pasted = replace(
            sample,
            points=np.concatenate(clouds),
            boxes=np.concatenate([sample.boxes, boxes]),
            labels=np.concatenate([sample.labels, database.labels[chosen]]),
        )
        if not self.sample_2d:
            return pasted
        owner = np.repeat(np.arange(-1, len(chosen)), [len(cloud) for cloud in clouds])
        return self._paint(pasted, [database.crop(int(index)) for index in chosen], owner)

    def draw(self, sample: Sample, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the objects to paste; fewer than wished where they would overlap."""
        chosen: list[int] = []
        boxes = sample.boxes
        for name, wanted in self.db_sampler["sample_groups"].items():
            label = CLASSES.index(name)
            missing = int(wanted) - int((sample.labels == label).sum())
            number = min(round(self.db_sampler.get("rate", 1.0) * missing), len(self.pools[label]))
            if number <= 0:
                continue
            drawn = rng.choice(self.pools[label], number, replace=False)
            free = _free(boxes, self.database.boxes[drawn])
            chosen += drawn[free].tolist()
            boxes = np.concatenate([boxes, self.database.boxes[drawn[free]]])
        return np.array(chosen, np.int64)

    def _paint(
        self, sample: Sample, crops: Sequence[NDArray[np.uint8] | None], owner: NDArray[np.int64]
    ) -> Sample:
        """Paint pictures into every view, far ones first, the frame's own objects among them.

        Args:
            sample: with the pasted boxes last.
            crops: a picture for each of them, or None.
            owner: (N,) which pasted object a point belongs to; -1: the frame.
        """
        images, seen = sample.images.copy(), np.ones(len(sample.points), bool)
        rectangles = image_rectangles(sample.boxes, sample.lidar2img, images.shape[1:3])
        own = len(sample.boxes) - len(crops)
        for view, image in enumerate(images):
            painted: list[int] = []
            for place in self._order(sample, view, rectangles[view]).tolist():
                left, up, right, down = rectangles[view, place]
                window = np.s_[up:down, left:right]
                if place >= own:
                    crop = crops[place - own]
                    if crop is None:
                        continue
                    size = (int(right - left), int(down - up))
                    crop = np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR), np.uint8)
                elif any(_meet(rectangles[view, place], rectangles[view, other]) for other in painted):
                    crop = sample.images[view][window]
                else:
                    continue  # nothing new behind it: painting it again would change nothing
                image[window] = _blend(image[window], crop, self.mixup_rate)
                painted.append(place)
            if self.modify_points and painted:
                top = np.full(image.shape[:2], -1)  # which box was painted last
                for place in painted:
                    left, up, right, down = rectangles[view, place]
                    top[up:down, left:right] = place
                seen &= _unhidden(sample, view, top, np.where(owner >= 0, owner + own, -1), own)
        return replace(sample, images=images, points=sample.points[seen])

    def _order(self, sample: Sample, view: int, rectangles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the boxes that a view shows, in the order of painting."""
        shown = np.flatnonzero((rectangles[:, 2:] - rectangles[:, :2] > 1).all(axis=1))
        if self.sample_method != "depth":
            return shown
        row = sample.lidar2img[view, 2]
        depth = sample.boxes[shown, :3] @ row[:3] + row[3]
        return shown[np.argsort(-depth, kind="stable")]


def _free(held: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which new boxes can stay: they overlap no held one and no new one that is still in the run.

    In order: one that was dropped stands in nobody's way, one that is not judged yet does (CMT).
    """
    among = overlap_bev(new, new)
    np.fill_diagonal(among, False)
    blocked = np.any(overlap_bev(new, held), axis=1)
    stays = np.ones(len(new), bool)
    for index in range(len(new)):
        stays[index] = not (blocked[index] or (among[index] & stays).any())
    return stays


def _meet(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    """Tell whether two rectangles share a pixel."""
    return bool((one[:2] < other[2:]).all() and (other[:2] < one[2:]).all())


def _blend(old: NDArray[np.uint8], new: NDArray[np.uint8], rate: float) -> NDArray[np.uint8]:
    if rate < 0:
        return new
    return (old * np.float32(1 - rate) + new * np.float32(rate)).astype(np.uint8)


def _unhidden(
    sample: Sample, view: int, top: NDArray[np.int64], owner: NDArray[np.int64], own: int
) -> NDArray[np.bool_]:
    """Return which points (N,) a view does not show behind the picture of a pasted box that is not theirs."""
    row = sample.points[:, :3] @ sample.lidar2img[view, :3, :3].T + sample.lidar2img[view, :3, 3]
    ahead = row[:, 2] > 0
    depth = np.where(ahead, row[:, 2], 1)
    u, v = row[:, 0] / depth, row[:, 1] / depth
    height, width = top.shape
    within = ahead & (u > 0) & (u < width) & (v > 0) & (v < height)
    shown = np.full(len(u), -1)
    shown[within] = top[v[within].astype(int), u[within].astype(int)]
    # a pasted point is seen on its own picture alone, one of the frame wherever no pasted picture is
    return ~within | np.where(owner >= 0, shown == owner, shown < own)
