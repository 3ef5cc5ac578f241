"""Corruptions of a frame that simulate failing sensors. They are repeatable and work on any dataset.

They include the six kinds of MoME and nuScenes-R. docs/conditions.md shows each kind and its source.
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
"""Width of the sector that a partly blocked LiDAR loses: a third of a full turn."""

TOP_BEAM_RAD, BEAM_STEP_RAD = 0.1862, 0.023275
"""Elevation of the highest of the 32 beams of nuScenes' LiDAR (HDL-32E), and the step between two beams."""

BEAMS_LEFT = (7, 9, 11, 13)
"""Beams that remain if a LiDAR has only four, counted from the top: elevations +1.3 to -6.7 degrees
(mit-han-lab/bevfusion, ``reduce_LiDAR_beams``)."""

FIELD_RAD = np.pi / 3
"""Half the angle of a limited field of view around straight ahead (nuScenes-R: [-60, 60] degrees)."""

OBJECT_RATE = 0.5
"""Share of frames in which objects return no echo (nuScenes-R: ``object_failure``, one draw per frame)."""

SPOTS = (4, 9)
"""Least and largest number of dirt spots on a lens. They cover 29 % of an image (median; 14 to 44 % from the
5th to the 95th percentile)."""

LENS = (90, 160)
"""Height and width in pixels at which dirt is drawn, before it is resized to the image."""


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
    """Keep four beams. The beam is computed from the elevation, because points do not hold their ring.

    Points of earlier sweeps are in the current LiDAR frame, so the beams are blurred if the vehicle moves.
    """
    elevation = np.arctan2(sample.points[:, 2], np.hypot(sample.points[:, 0], sample.points[:, 1]))
    beam = np.rint((TOP_BEAM_RAD - elevation) / BEAM_STEP_RAD)
    return replace(sample, points=sample.points[np.isin(beam, BEAMS_LEFT)])


def _lidar_fov(sample: Sample, rng: np.random.Generator) -> Sample:
    """Keep the points ahead. In nuScenes' LiDAR frame y points forward."""
    bearing = np.arctan2(sample.points[:, 0], sample.points[:, 1])
    return replace(sample, points=sample.points[np.abs(bearing) <= FIELD_RAD])


def _lidar_objects(sample: Sample, rng: np.random.Generator) -> Sample:
    """In half of the frames, drawn at random, drop the points in all annotated boxes."""
    kept = np.ones(len(sample.points), bool)
    if rng.uniform() < OBJECT_RATE:
        for box in sample.boxes:
            kept[points_inside(sample.points, box)] = False
    return replace(sample, points=sample.points[kept])


def _occlusion(sample: Sample, rng: np.random.Generator) -> Sample:
    """Put different dirt on every lens, blended as in nuScenes-R: alpha = (mask / 255)^3."""
    height, width = sample.images.shape[1:3]
    images = np.empty_like(sample.images)
    for view, image in enumerate(sample.images):
        dirt = cv2.resize(_dirty_lens(rng), (width, height)).astype(np.float32)[..., None]
        clear = (dirt / 255) ** 3
        images[view] = np.rint(clear * image + (1 - clear) * dirt)
    return replace(sample, images=images)


def _dirty_lens(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw the mask of one lens, of size ``LENS``: 255 where it is clear, dark with soft edges at dirt."""
    height, width = LENS
    mask = np.full(LENS, 255, np.uint8)
    for _ in range(rng.integers(SPOTS[0], SPOTS[1] + 1)):
        centre, size = rng.uniform((0, 0), (width, height)), rng.uniform(6, 18)
        shade = int(rng.integers(10, 70))
        for _ in range(6):  # overlapping ellipses, because real spots are not round
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
"""Sensor conditions: no failure; a third of the LiDAR's turn lost; no LiDAR; one camera black; all cameras
black; only four beams; only 120 degrees ahead; no echo of objects in half of the frames; dirt on lenses."""

OF_CAMERAS = ("one_camera", "no_cameras", "occlusion")
"""Conditions that change images only."""


def corrupt(sample: Sample, condition: str, seed: int) -> Sample:
    """Return the sample with a sensor condition. Boxes and calibration stay.

    The draws depend on the seed and the sample's token, and not on the order of the frames. Without a LiDAR
    there are no points. The image of a black camera is all zeros.

    Args:
        sample: of native or model size; without images a condition of the cameras changes nothing.
        condition: key of ``CONDITIONS``.
        seed: at least 0.

    Raises:
        DataError: there is no such condition.
    """
    if condition not in CONDITIONS:
        raise DataError(f"unknown sensor condition {condition!r}; choose among {', '.join(CONDITIONS)}")
    if condition in OF_CAMERAS and not sample.images.size:
        return sample
    name = int.from_bytes(hashlib.sha256(sample.token.encode()).digest()[:8], "big")
    return CONDITIONS[condition](sample, np.random.default_rng([seed, name]))
