"""Draws a sample: six images and a bird's-eye view, with the boxes."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config.settings import CLASSES
from pipeline.data.augmentation.transforms import box_corners, project
from pipeline.data.sample import Sample

COLOURS = (
    (60, 180, 255), (70, 120, 240), (40, 200, 200), (200, 130, 60), (150, 90, 200),
    (170, 170, 170), (240, 90, 240), (120, 230, 120), (80, 80, 255), (255, 200, 80),
)  # fmt: skip
"""BGR of each class, in the order of ``CLASSES``."""

PLACES = ((0, 1), (0, 2), (0, 0), (1, 1), (1, 0), (1, 2))
"""Row and column of each view, in the order of ``CAMERAS``: front views above, left views at the left."""

EDGES = ((0, 1), (0, 2), (0, 4), (1, 3), (1, 5), (2, 3), (2, 6), (3, 7), (4, 5), (4, 6), (5, 7), (6, 7))
"""Pairs of corners of ``box_corners`` that an edge connects."""

NEAR_M = 0.5
"""Boxes with a corner nearer than this to a camera's plane are not drawn: their edges go to infinity."""

GROUND = 24
"""Grey level of the background."""

LEGEND_PX = 26
"""Height of the line of class names."""

BEV_M = 56.0
"""Half the side of the bird's-eye view."""


def draw_sample(sample: Sample, width: int = 1800) -> NDArray[np.uint8]:
    """Draw a sample.

    Args:
        sample: of native or of the model's size.
        width: width of the picture in pixels.

    Returns:
        (h, width, 3) uint8 BGR: three views above three, the bird's-eye view at the right (x to the
        right, y up), a legend below.
    """
    height, wide = sample.images.shape[1:3]
    shape = height / wide
    across = round(width / (3 + 2 * shape))  # three images and a square as high as two of them
    tile = (across, round(across * shape))  # width, height
    views = np.zeros((2 * tile[1], 3 * tile[0], 3), np.uint8)
    for view, (row, column) in enumerate(PLACES[: len(sample.images)]):
        made = cv2.resize(_boxed(sample, view), tile, interpolation=cv2.INTER_AREA)
        views[row * tile[1] : (row + 1) * tile[1], column * tile[0] : (column + 1) * tile[0]] = made
    pictures = np.concatenate([views, _bev(sample, len(views))], axis=1)
    legend = np.full((LEGEND_PX, pictures.shape[1], 3), GROUND, np.uint8)
    _write_legend(legend, sample.labels.tolist())
    return np.concatenate([pictures, legend])


def _boxed(sample: Sample, view: int) -> NDArray[np.uint8]:
    """Return one image with the edges of the boxes in front of its camera."""
    image = sample.images[view].copy()
    seen = project(box_corners(sample.boxes), sample.lidar2img[view : view + 1])[0]
    thick = max(1, round(image.shape[1] / 500))
    for label, corners in zip(sample.labels, seen, strict=True):
        inside = (np.abs(corners[:, :2]) < 10 * image.shape[1]).all()
        if (corners[:, 2] > NEAR_M).all() and inside:
            ends = np.round(corners[:, :2]).astype(int)
            for a, b in EDGES:
                cv2.line(image, tuple(ends[a]), tuple(ends[b]), COLOURS[label], thick, cv2.LINE_AA)
    return image


def _bev(sample: Sample, side: int) -> NDArray[np.uint8]:
    """Return points (older ones darker) and boxes from above, with a line to the front of each box."""
    image = np.full((side, side, 3), GROUND, np.uint8)
    points = sample.points[(np.abs(sample.points[:, :2]) < BEV_M).all(axis=1)]
    points = points[np.argsort(-points[:, 4], kind="stable")]  # the key frame last, on top
    pixels = np.floor(_to_pixels(points[:, :2], side)).astype(int)
    shade = (210 - 240 * np.clip(points[:, 4], 0, 0.5)).astype(np.uint8)
    image[pixels[:, 1], pixels[:, 0]] = shade[:, None]
    for label, box, corners in zip(sample.labels, sample.boxes, box_corners(sample.boxes), strict=True):
        ring = np.round(_to_pixels(corners[[0, 2, 6, 4], :2], side)).astype(np.int32)
        cv2.polylines(image, [ring], True, COLOURS[label], 1, cv2.LINE_AA)
        front = box[:2] + box[3] / 2 * np.array([np.cos(box[6]), np.sin(box[6])])
        a, b = np.round(_to_pixels(np.stack([box[:2], front]), side)).astype(int)
        cv2.line(image, tuple(a), tuple(b), COLOURS[label], 1, cv2.LINE_AA)
    return image


def _to_pixels(spots: NDArray[np.floating], side: int) -> NDArray[np.float64]:
    """Return the pixels (..., 2) of positions (..., 2) in m; x to the right, y up."""
    scale = (side - 1) / (2 * BEV_M)
    return np.asarray((spots * [1, -1] + BEV_M) * scale, np.float64)


def _write_legend(strip: NDArray[np.uint8], labels: Sequence[int]) -> None:
    """Write the classes that occur, and the number of boxes of each."""
    left = 8
    for label in sorted(set(labels)):
        text, font = f"{CLASSES[label]} {labels.count(label)}", cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(strip, text, (left, LEGEND_PX - 8), font, 0.5, COLOURS[label], 1, cv2.LINE_AA)
        left += cv2.getTextSize(text, font, 0.5, 1)[0][0] + 18
