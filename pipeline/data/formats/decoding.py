"""Reads the files of a frame to a Sample. Files and shards both use it, so they give the same bits."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.formats.frame_record import FrameRecord
from pipeline.data.images import Encoded, decode_image
from pipeline.data.safe_paths import read_bytes
from pipeline.data.sample import CAMERAS, DataError, Sample
from pipeline.data.sensors import parse_points
from pipeline.data.source import READ_ALL, Reading

EGO_RADIUS_M = 1.0
"""Points of a sweep nearer than this are returns from the ego vehicle (mmdet3d LoadPointsFromMultiSweeps)."""

NAMELESS = "the dataset names none"


def load_sample(record: FrameRecord, reading: Reading = READ_ALL) -> Sample:
    """Read the files of a frame; DataError names a file or a camera that cannot be used."""
    jpegs = load_images(record, reading.missing_cameras) if reading.images else None
    return assemble(record, jpegs, load_points(record, reading.remove_close))


def load_images(record: FrameRecord, missing_cameras: str) -> list[bytes | None]:
    """Return the encoded images of a frame in the order of ``CAMERAS``.

    Args:
        record: the frame.
        missing_cameras: ``refuse``, or ``black`` for None where the dataset or the disk has no image.

    Raises:
        DataError: a camera is missing and that is refused, or a file cannot be read.
    """
    jpegs: list[bytes | None] = []
    for path, camera in zip(record.image_paths, CAMERAS, strict=True):
        there = path is not None and (path.exists() or path.is_symlink())
        if not there:
            _refuse_missing(record, camera, missing_cameras, str(path or NAMELESS))
        jpegs.append(read_bytes(path, record.root) if path is not None and there else None)
    return jpegs


def refuse_unnamed(record: FrameRecord, missing_cameras: str) -> None:
    """Raise DataError if a frame names no file for a camera, unless a black image may stand in."""
    for path, camera in zip(record.image_paths, CAMERAS, strict=True):
        if path is None:
            _refuse_missing(record, camera, missing_cameras, NAMELESS)


def _refuse_missing(record: FrameRecord, camera: str, missing_cameras: str, where: str) -> None:
    if missing_cameras != "black":
        raise DataError(
            f"frame {record.token}: has no image of {camera} ({where}); restore it, or set "
            'missing_cameras="black"'
        )


def assemble(
    record: FrameRecord,
    jpegs: Sequence[Encoded | None] | None,
    points: NDArray[np.float32],
    missing: str = "black",
) -> Sample:
    """Make the Sample of a frame from its parts.

    Args:
        record: the frame.
        jpegs: encoded images in the order of ``CAMERAS``, None for a missing camera; or None for no image.
        points: (N, 5).
        missing: ``black`` makes the image of a missing camera black; ``refuse`` is a DataError.
    """
    return Sample(
        token=record.token,
        scene=record.scene,
        images=_decoded(record, jpegs, missing),
        points=points,
        lidar2img=lidar2img(record.cam2img, record.lidar2cam),
        boxes=record.boxes,
        labels=record.labels,
        lidar2ego=record.lidar2ego,
        ego2global=record.ego2global,
    )


def _decoded(record: FrameRecord, jpegs: Sequence[Encoded | None] | None, missing: str) -> NDArray[np.uint8]:
    """Return the images (V, h, w, 3) of ``assemble``."""
    if jpegs is None:
        return np.zeros((len(CAMERAS), 0, 0, 3), np.uint8)
    for camera, data in zip(CAMERAS, jpegs, strict=True):
        if data is None:
            _refuse_missing(record, camera, missing, "it was missing when the shards were written")
    named = zip(jpegs, record.image_paths, strict=True)
    images = [None if data is None else decode_image(data, str(path)) for data, path in named]
    sizes = {image.shape for image in images if image is not None}
    if len(sizes) != 1:
        shapes = ", ".join(
            f"{path.name} {image.shape[1]}x{image.shape[0]}"
            for path, image in zip(record.image_paths, images, strict=True)
            if image is not None and path is not None
        )
        raise DataError(f"frame {record.token}: its images must have one size, got {shapes or 'no image'}")
    black = np.zeros(sizes.pop(), np.uint8)
    return np.stack([black if image is None else image for image in images])


def lidar2img(cam2img: NDArray[np.float64], lidar2cam: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (V, 4, 4) LiDAR frame -> pixels from (V, 3, 3) intrinsics and (V, 4, 4) extrinsics."""
    wide = np.tile(np.eye(4), (len(cam2img), 1, 1))
    wide[:, :3, :3] = cam2img
    return wide @ lidar2cam


def load_scan(record: FrameRecord) -> NDArray[np.float32]:
    """Read the key frame's own scan, (N, 5) float32."""
    return parse_points(read_bytes(record.lidar_path, record.root), str(record.lidar_path), record.columns)


def load_points(record: FrameRecord, remove_close: bool = False) -> NDArray[np.float32]:
    """Read the key frame's scan and its sweeps as one (N, 5) float32 cloud in the key frame's LiDAR frame.

    Args:
        record: the frame.
        remove_close: drop the ego vehicle's own returns from the sweeps.
    """
    clouds = [load_scan(record)]
    for sweep in record.sweeps:
        cloud = parse_points(read_bytes(sweep.path, record.root), str(sweep.path), sweep.columns)
        if remove_close:
            cloud = cloud[(np.abs(cloud[:, :2]) >= EGO_RADIUS_M).any(axis=1)]
        cloud[:, :3] = cloud[:, :3] @ sweep.to_key[:3, :3].T + sweep.to_key[:3, 3]
        cloud[:, 4] = sweep.lag_s
        clouds.append(cloud)
    return np.concatenate(clouds)
