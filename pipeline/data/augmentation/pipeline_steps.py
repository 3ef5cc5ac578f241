"""The steps of a CMT ``train_pipeline``, with the names and keys that users know.

A step is a frozen dataclass whose fields are the config's keys. It is called with a sample and a generator.
Names, keys, defaults and values are those of junjie18/CMT,
projects/mmdet3d_plugin/datasets/pipelines/transform_3d.py, and of mmdet3d 1.4's transforms.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.config.settings import CLASSES
from pipeline.data.augmentation.transforms import (
    Cut,
    cut_images,
    filter_boxes,
    filter_points,
    motion,
    transform_scene,
)
from pipeline.data.sample import DataError, Sample

Step = Callable[[Sample, np.random.Generator], Sample]
"""A step of a pipeline. All its draws come from the given generator."""


@dataclass(frozen=True)
class LoadAnnotations3D:
    """Set unknown velocities to 0, as mmdet3d's NuScenesDataset does.

    Attributes:
        with_bbox_3d, with_label_3d: must be True, because training needs both.
    """

    with_bbox_3d: bool = True
    with_label_3d: bool = True

    def __post_init__(self) -> None:
        if not (self.with_bbox_3d and self.with_label_3d):
            raise DataError("LoadAnnotations3D: training needs with_bbox_3d=True and with_label_3d=True")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Replace NaN velocities."""
        boxes = sample.boxes.copy()
        boxes[np.isnan(boxes[:, 7:9]).any(axis=1), 7:9] = 0
        return replace(sample, boxes=boxes)


@dataclass(frozen=True)
class ModalMask3D:
    """Mask one modality as in CMT: black images, or all points at the origin (about one voxel).

    Attributes:
        mode: ``train``: a quarter of the samples lose their images, a quarter their points. ``test``: every
            sample loses ``mask_modal``.
        mask_modal: ``image`` or ``points``.
    """

    mode: str = "test"
    mask_modal: str = "image"

    def __post_init__(self) -> None:
        if self.mode not in ("train", "test") or self.mask_modal not in ("image", "points"):
            raise DataError(
                f"ModalMask3D: mode {self.mode!r} and mask_modal {self.mask_modal!r}; expected mode 'train' "
                "or 'test', mask_modal 'image' or 'points'"
            )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Mask the sample."""
        lost = self.mask_modal
        if self.mode == "train":
            draw = rng.uniform()
            lost = "image" if draw > 0.75 else "points" if draw > 0.5 else ""
        if lost == "image":
            return replace(sample, images=np.zeros_like(sample.images))
        if lost == "points":
            return replace(sample, points=np.zeros_like(sample.points))
        return sample


@dataclass(frozen=True)
class GlobalRotScaleTransAll:
    """Rotate the scene about z, then scale it, then shift it. The cameras' matrices are updated.

    Attributes:
        rot_range: rad, from and to; one number means plus or minus it.
        scale_ratio_range: from and to.
        translation_std: standard deviations along x, y, z in m; one number means all three.
    """

    rot_range: Sequence[float] | float = (-0.78539816, 0.78539816)
    scale_ratio_range: Sequence[float] = (0.95, 1.05)
    translation_std: Sequence[float] | float = (0.0, 0.0, 0.0)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draw a motion and apply it."""
        first, last = (
            self.rot_range if isinstance(self.rot_range, Sequence) else (-self.rot_range, self.rot_range)
        )
        turn, (low, high) = rng.uniform(first, last), self.scale_ratio_range
        return transform_scene(
            sample, motion(turn, rng.uniform(low, high), rng.normal(0, self.translation_std, 3))
        )


@dataclass(frozen=True)
class CustomRandomFlip3D:
    """Mirror the scene. The cameras' matrices are updated, and the images stay.

    Attributes:
        flip_ratio_bev_horizontal: probability that y changes its sign.
        flip_ratio_bev_vertical: probability that x changes its sign.
        sync_2d: must be False: only ``ResizeCropFlipImage`` mirrors images.
    """

    flip_ratio_bev_horizontal: float = 0.0
    flip_ratio_bev_vertical: float = 0.0
    sync_2d: bool = False

    def __post_init__(self) -> None:
        if self.sync_2d:
            raise DataError(
                "CustomRandomFlip3D: sync_2d=True has no meaning for six cameras; set it to False"
            )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draw the flips and apply them."""
        y, x = rng.uniform(size=2) < (self.flip_ratio_bev_horizontal, self.flip_ratio_bev_vertical)
        return transform_scene(sample, np.diag([-1.0 if x else 1.0, -1.0 if y else 1.0, 1.0, 1.0]))


@dataclass(frozen=True)
class PointsRangeFilter:
    """Drop the points outside ``point_cloud_range`` (x, y, z minima, then maxima, m)."""

    point_cloud_range: Sequence[float]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Drop."""
        return filter_points(sample, self.point_cloud_range)


@dataclass(frozen=True)
class ObjectRangeFilter:
    """Drop the boxes whose centre is outside ``point_cloud_range``, seen from above."""

    point_cloud_range: Sequence[float]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Drop."""
        return filter_boxes(sample, self.point_cloud_range)


@dataclass(frozen=True)
class ObjectNameFilter:
    """Drop the boxes of classes that ``classes`` does not name; labels keep the order of ``CLASSES``."""

    classes: Sequence[str]

    def __post_init__(self) -> None:
        check_order("ObjectNameFilter", self.classes)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Drop."""
        kept = sample.labels < len(self.classes)
        return replace(sample, boxes=sample.boxes[kept], labels=sample.labels[kept])


@dataclass(frozen=True)
class PointShuffle:
    """Shuffle the points, because a voxel keeps its first ten."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Shuffle."""
        return replace(sample, points=sample.points[rng.permutation(len(sample.points))])


@dataclass(frozen=True)
class ResizeCropFlipImage:
    """Resize the images, crop them at the top, and mirror them. Missing areas are black.

    Attributes:
        data_aug_conf: ``H``, ``W``: native size; ``final_dim``: (height, width) of the result;
            ``resize_lim``, ``bot_pct_lim``, ``rot_lim``: ranges; ``rand_flip``.
        training: whether to draw; else the smallest resize that fills ``final_dim``, cropped at the middle.
        pic_wise: draw for every image of a sample separately.
    """

    data_aug_conf: Mapping[str, Any]
    training: bool = True
    pic_wise: bool = False

    KEYS = ("H", "W", "final_dim", "resize_lim", "bot_pct_lim", "rot_lim", "rand_flip")

    def __post_init__(self) -> None:
        if set(self.data_aug_conf) != set(self.KEYS):
            raise DataError(
                f"ResizeCropFlipImage: data_aug_conf has the keys {sorted(self.data_aug_conf)}; "
                f"expected {sorted(self.KEYS)}"
            )
        if any(self.data_aug_conf["rot_lim"]):
            raise DataError(
                f"ResizeCropFlipImage: rot_lim={self.data_aug_conf['rot_lim']} would turn the images, "
                "which no published CMT config does and this step cannot; set it to (0.0, 0.0)"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the result, in pixels."""
        height, width = self.data_aug_conf["final_dim"]
        return int(height), int(width)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draw the cuts and apply them.

        Raises:
            DataError: the images have another size than ``H``, ``W``.
        """
        native = int(self.data_aug_conf["H"]), int(self.data_aug_conf["W"])
        if sample.images.shape[1:3] != native:
            height, width = sample.images.shape[1:3]
            raise DataError(
                f"frame {sample.token}: its images are {width}x{height}, data_aug_conf says W={native[1]}, "
                f"H={native[0]}; correct H, W and resize_lim of ResizeCropFlipImage, or the data"
            )
        views = len(sample.images)
        cuts = [self._draw(rng) for _ in range(views if self.pic_wise else 1)]
        return cut_images(sample, cuts if self.pic_wise else cuts * views, self.size)

    def _draw(self, rng: np.random.Generator) -> Cut:
        conf, size = self.data_aug_conf, self.size
        if self.training:
            factor, bottom = rng.uniform(*conf["resize_lim"]), rng.uniform(*conf["bot_pct_lim"])
        else:
            factor = max(size[0] / conf["H"], size[1] / conf["W"])
            bottom = float(np.mean(conf["bot_pct_lim"]))
        height, width = int(conf["H"] * factor), int(conf["W"] * factor)
        place = rng.uniform() if self.training else 0.5
        mirror = bool(self.training and conf["rand_flip"] and rng.integers(2))
        left = int(place * max(0, width - size[1]))
        return Cut((height, width), int((1 - bottom) * height) - size[0], left, mirror)


def check_order(where: str, classes: Sequence[str]) -> None:
    """Raise DataError unless the classes are the first of ``CLASSES``, in order: labels are its indices."""
    if tuple(classes) != CLASSES[: len(classes)]:
        raise DataError(
            f"{where}: classes {list(classes)}; expected the ten of CMT in its order, {', '.join(CLASSES)}"
        )
