"""What becomes of a frame when a sensor fails; any dataset, in memory, repeatable.

The six kinds of MoME and nuScenes-R are among them; docs/conditions.md shows each and says which is which.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.boxes import points_inside
from pipeline.data.sample import DataError, Sample

SECTOR_RAD = 2 * np.pi / 3
"""Width of the sector that a partly blocked LiDAR loses: a third of its turn."""

TOP_BEAM_RAD, BEAM_STEP_RAD = 0.1862, 0.023275
"""Elevation of the highest of the HDL-32E's 32 beams and the step between two: nuScenes' LiDAR."""

BEAMS_LEFT = (7, 9, 11, 13)
"""Beams that a LiDAR of four keeps, counted from the top: elevations +1.3 to -6.7 degrees
(mit-han-lab/bevfusion, ``reduce_LiDAR_beams``)."""

FIELD_RAD = np.pi / 3
"""A limited field of view reaches this far to either side of straight ahead (nuScenes-R: [-60, 60])."""

OBJECT_RATE = 0.5
"""Share of the frames in which objects return no echo (nuScenes-R: ``object_failure``, one draw a frame)."""

SPOTS = (4, 9)
"""Least and most dirt spots on a lens: 29 % of a picture (median; 5th to 95th percentile 14 to 44 %)."""

LENS = (90, 160)
"""Height and width in pixels at which dirt is drawn, before it is brought to the size of the picture."""


def _clean(sample: Sample, rng: np.random.Generator) -> Sample:
    return sample


def _lidar_sector(sample: Sample, rng: np.random.Generator) -> Sample:
    """Drop the points of one sector in a random direction."""
    start = rng.uniform(0, 2 * np.pi)
    turned = (np.arctan2(sample.points[:, 1], sample.points[:, 0]) - start) % (2 * np.pi)
    return replace(sample, points=sample.points[turned >= SECTOR_RAD])


def _no_lidar(sample: Sample, rng: np.random.Generator) -> Sample:
    return replace(sample, points=sample.points[:0])


def _one_camera(sample: Sample, rng: np.random.Generator) -> Sample:
    """Turn one random camera black."""
    images = sample.images.copy()
    images[rng.integers(len(images))] = 0
    return replace(sample, images=images)


def _no_cameras(sample: Sample, rng: np.random.Generator) -> Sample:
    return replace(sample, images=np.zeros_like(sample.images))


def _lidar_beams(sample: Sample, rng: np.random.Generator) -> Sample:
    """Keep four beams, told by elevation: points know their time, not their ring.

    The points of an earlier sweep are seen from where the LiDAR is now, so a moving vehicle blurs the bands.
    """
    elevation = np.arctan2(sample.points[:, 2], np.hypot(sample.points[:, 0], sample.points[:, 1]))
    beam = np.rint((TOP_BEAM_RAD - elevation) / BEAM_STEP_RAD)
    return replace(sample, points=sample.points[np.isin(beam, BEAMS_LEFT)])


def _lidar_fov(sample: Sample, rng: np.random.Generator) -> Sample:
    """Keep the points ahead; y points forward in nuScenes' LiDAR frame."""
    bearing = np.arctan2(sample.points[:, 0], sample.points[:, 1])
    return replace(sample, points=sample.points[np.abs(bearing) <= FIELD_RAD])


def _lidar_objects(sample: Sample, rng: np.random.Generator) -> Sample:
    """In every other frame, by draw, take the points of all annotated objects."""
    kept = np.ones(len(sample.points), bool)
    if rng.uniform() < OBJECT_RATE:
        for box in sample.boxes:
            kept[points_inside(sample.points, box)] = False
    return replace(sample, points=sample.points[kept])


def _occlusion(sample: Sample, rng: np.random.Generator) -> Sample:
    """Put dirt of its own on every lens, blended as in nuScenes-R: alpha = (mask / 255)^3."""
    height, width = sample.images.shape[1:3]
    images = np.empty_like(sample.images)
    for view, image in enumerate(sample.images):
        dirt = cv2.resize(_dirty_lens(rng), (width, height)).astype(np.float32)[..., None]
        clear = (dirt / 255) ** 3
        images[view] = np.rint(clear * image + (1 - clear) * dirt)
    return replace(sample, images=images)


def _dirty_lens(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a mask (``LENS``) of one lens: 255 where one sees through, dark with soft edges where dirt is."""
    height, width = LENS
    mask = np.full(LENS, 255, np.uint8)
    for _ in range(rng.integers(SPOTS[0], SPOTS[1] + 1)):
        centre, size = rng.uniform((0, 0), (width, height)), rng.uniform(6, 18)
        shade = int(rng.integers(10, 70))
        for _ in range(6):  # overlapping ellipses: no spot is round
            x, y = np.rint(centre + rng.normal(0, size / 2, 2)).astype(int).tolist()
            axes = np.rint(rng.uniform(0.4, 1.0, 2) * size).astype(int).tolist()
            cv2.ellipse(mask, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, shade, cv2.FILLED)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), sigmaX=0.7), np.uint8)


CONDITIONS: Mapping[str, Callable[[Sample, np.random.Generator], Sample]] = MappingProxyType(
    {
        "clean": _clean,
        "lidar_sector": _lidar_sector,
        "no_lidar": _no_lidar,
        "one_camera": _one_camera,
        "no_cameras": _no_cameras,
        "lidar_beams": _lidar_beams,
        "lidar_fov": _lidar_fov,
        "lidar_objects": _lidar_objects,
        "occlusion": _occlusion,
    }
)
"""Sensor conditions: all well; a third of the LiDAR turn lost, LiDAR dead; one camera black, all black; four
beams, 120 degrees ahead only, no echo of objects in every other frame; dirt on every lens."""


def corrupt(sample: Sample, condition: str, seed: int) -> Sample:
    """Return the sample as the failing sensors give it; boxes and calibration stay.

    What fails is drawn from the seed and the sample's token, so it does not depend
    on the order of the frames. A dead LiDAR gives no point, a black camera an image of zeros.

    Args:
        sample: native or model size.
        condition: key of ``CONDITIONS``.
        seed: at least 0.

    Raises:
        DataError: if there is no such condition.
    """
    if condition not in CONDITIONS:
        raise DataError(f"unknown sensor condition {condition!r}; choose among {', '.join(CONDITIONS)}")
    name = int.from_bytes(hashlib.sha256(sample.token.encode()).digest()[:8], "big")
    return CONDITIONS[condition](sample, np.random.default_rng([seed, name]))
