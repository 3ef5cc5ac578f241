"""GT sampling: pastes objects of other frames into the points and images of a frame.

It follows junjie18/CMT, UnifiedObjectSample and UnifiedDataBaseSampler, except for one error there: the
copies of the frame's own objects are views into the image that is being painted, so a near object of the
frame does not cover a pasted one behind it. Here it does.
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
from pipeline.storage.paths import resolve_path

SAMPLER_KEYS = {
    "type", "data_root", "info_path", "rate", "prepare", "classes", "sample_groups", "points_loader",
}  # fmt: skip


@dataclass(frozen=True)
class UnifiedObjectSample:
    """Paste objects of a database until each class has its number. Boxes must not overlap, seen from above.

    Attributes:
        db_sampler: ``info_path`` (a database folder or dbinfos ``.pkl``), ``sample_groups`` (class -> number
            of objects that a frame should have), ``rate`` (share of the missing ones to paste), ``prepare``
            (``filter_by_min_points``, ``filter_by_difficulty``), ``classes``.
        sample_2d: paste into the images too.
        sample_method: order of painting: ``depth``: far objects first; else in the order of the boxes.
        modify_points: drop points that a pasted picture hides.
        mixup_rate: weight of the pasted picture in a pixel; negative: 1.

    Raises:
        DataError: an unknown or missing key of ``db_sampler``, or an unknown class.
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
        unknown = [name for name in self.db_sampler["sample_groups"] if name not in CLASSES]
        if unknown:
            raise DataError(
                f"UnifiedObjectSample: sample_groups names {unknown[0]!r}; expected {', '.join(CLASSES)}"
            )

    @cached_property
    def database(self) -> ObjectDatabase:
        """The database, opened on the first use."""
        root = self.db_sampler.get("data_root")
        path = resolve_path(self.db_sampler["info_path"])
        return open_database(path, None if root is None else resolve_path(root))

    @cached_property
    def pools(self) -> Mapping[int, NDArray[np.int64]]:
        """Label -> indices of objects with enough points, in the order of ``sample_groups``."""
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
        """Draw objects and paste them."""
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
        """Return the indices of the objects to paste; fewer than asked for where they would overlap."""
        chosen: list[int] = []
        boxes = sample.boxes
        for name, target in self.db_sampler["sample_groups"].items():
            label = CLASSES.index(name)
            missing = int(target) - int((sample.labels == label).sum())
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
        """Paint pictures of pasted objects, and of the frame's own objects before them, into every view.

        Args:
            sample: with the pasted boxes last.
            crops: a picture of each pasted object, or None.
            owner: (N,) index of the pasted object to which a point belongs; -1: the frame.
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
                    continue  # no pasted object is behind it, so painting it would change nothing
                image[window] = _blend(image[window], crop, self.mixup_rate)
                painted.append(place)
            if self.modify_points and painted:
                top = np.full(image.shape[:2], -1)  # index of the box that was painted last
                for place in painted:
                    left, up, right, down = rectangles[view, place]
                    top[up:down, left:right] = place
                seen &= _unhidden(sample, view, top, np.where(owner >= 0, owner + own, -1), own)
        return replace(sample, images=images, points=sample.points[seen])

    def _order(self, sample: Sample, view: int, rectangles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the boxes in a view, in the order of painting."""
        shown = np.flatnonzero((rectangles[:, 2:] - rectangles[:, :2] > 1).all(axis=1))
        if self.sample_method != "depth":
            return shown
        row = sample.lidar2img[view, 2]
        depth = sample.boxes[shown, :3] @ row[:3] + row[3]
        return shown[np.argsort(-depth, kind="stable")]


def _free(existing: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which new boxes can be pasted: they overlap no existing box, and no new box that may be pasted.

    Boxes are checked in order. A box that was dropped no longer counts; a box that was not checked yet does
    (CMT).
    """
    among = overlap_bev(new, new)
    np.fill_diagonal(among, False)
    blocked = np.any(overlap_bev(new, existing), axis=1)
    stays = np.ones(len(new), bool)
    for index in range(len(new)):
        stays[index] = not (blocked[index] or (among[index] & stays).any())
    return stays


def _meet(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    """Whether two rectangles have a pixel in common."""
    return bool((one[:2] < other[2:]).all() and (other[:2] < one[2:]).all())


def _blend(old: NDArray[np.uint8], new: NDArray[np.uint8], rate: float) -> NDArray[np.uint8]:
    if rate < 0:
        return new
    return (old * np.float32(1 - rate) + new * np.float32(rate)).astype(np.uint8)


def _unhidden(
    sample: Sample, view: int, top: NDArray[np.int64], owner: NDArray[np.int64], own: int
) -> NDArray[np.bool_]:
    """Return (N,) bool: False for points behind the picture of a pasted box that is not their own."""
    row = sample.points[:, :3] @ sample.lidar2img[view, :3, :3].T + sample.lidar2img[view, :3, 3]
    ahead = row[:, 2] > 0
    depth = np.where(ahead, row[:, 2], 1)
    u, v = row[:, 0] / depth, row[:, 1] / depth
    height, width = top.shape
    within = ahead & (u > 0) & (u < width) & (v > 0) & (v < height)
    shown = np.full(len(u), -1)
    shown[within] = top[v[within].astype(int), u[within].astype(int)]
    # A pasted point is kept on its own picture only; a point of the frame, where no pasted picture is.
    return ~within | np.where(owner >= 0, shown == owner, shown < own)
