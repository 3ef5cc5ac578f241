"""Failures: what becomes of a frame when a sensor fails; any dataset, in memory, repeatable."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from pipeline.data.sample import DataError, Sample

SECTOR_RAD = 2 * np.pi / 3
"""Width of the sector that a partly blocked LiDAR loses: a third of its turn."""


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


CONDITIONS: Mapping[str, Callable[[Sample, np.random.Generator], Sample]] = MappingProxyType(
    {
        "clean": _clean,
        "lidar_sector": _lidar_sector,
        "no_lidar": _no_lidar,
        "one_camera": _one_camera,
        "no_cameras": _no_cameras,
    }
)
"""Sensor conditions: all well, a third of the LiDAR turn lost, LiDAR dead, one camera black, all black."""


def corrupt(sample: Sample, condition: str, seed: int) -> Sample:
    """Return the sample as the failing sensors give it; boxes and calibration stay.

    Which sector or camera fails is drawn from the seed and the sample's token, so it does not depend
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
