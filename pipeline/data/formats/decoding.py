"""Decodes the bytes of a frame to a Sample. Files and shards both use it, so they give the same bits."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.formats.frame_record import FrameRecord
from pipeline.data.safe_paths import refuse_outside
from pipeline.data.sample import DataError, Sample

POINT_BYTES = 20
"""Five float32 of nuScenes' ``.pcd.bin``: x, y, z in m, intensity 0-255, ring index."""

Encoded = bytes | memoryview
"""The bytes of an encoded image."""

_TAIL = 4096
"""Number of bytes at the end of a JPEG that are searched for its end marker; some writers pad with zeros."""

EGO_RADIUS_M = 1.0
"""Points of a sweep nearer than this are returns from the ego vehicle (mmdet3d LoadPointsFromMultiSweeps)."""


def load_sample(record: FrameRecord, remove_close: bool = False) -> Sample:
    """Read the files of a frame; DataError names a file that cannot be used. See ``load_points``."""
    jpegs = [read_bytes(path, record.root) for path in record.image_paths]
    return assemble(record, jpegs, load_points(record, remove_close))


def read_bytes(path: Path, root: Path | None = None) -> bytes:
    """Return the bytes of a file.

    Args:
        path: the file.
        root: the dataset of the file. If the file is a link, it must not lead out of the dataset.

    Raises:
        DataError: the file cannot be read, or leads out of the dataset.
    """
    try:
        with open(path, "rb", opener=_no_link if root is not None else None) as file:
            return file.read()
    except OSError as problem:
        if problem.errno == errno.ELOOP and root is not None:  # the file is a link
            refuse_outside(root, path)
            return read_bytes(path.resolve())
        raise DataError(
            f"{path}: cannot be read ({problem.strerror}); the dataset is incomplete"
        ) from problem


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def assemble(record: FrameRecord, jpegs: Sequence[Encoded], points: NDArray[np.float32]) -> Sample:
    """Make the Sample of a frame from its encoded images (order of ``CAMERAS``) and its points (N, 5)."""
    images = [decode_image(data, str(path)) for data, path in zip(jpegs, record.image_paths, strict=True)]
    if len({image.shape for image in images}) != 1:
        shapes = ", ".join(
            f"{path.name} {image.shape[1]}x{image.shape[0]}"
            for path, image in zip(record.image_paths, images, strict=True)
        )
        raise DataError(f"frame {record.token}: its images must have one size, got {shapes}")
    return Sample(
        token=record.token,
        scene=record.scene,
        images=np.stack(images),
        points=points,
        lidar2img=lidar2img(record.cam2img, record.lidar2cam),
        boxes=record.boxes,
        labels=record.labels,
        lidar2ego=record.lidar2ego,
        ego2global=record.ego2global,
    )


def lidar2img(cam2img: NDArray[np.float64], lidar2cam: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (V, 4, 4) LiDAR frame -> pixels from (V, 3, 3) intrinsics and (V, 4, 4) extrinsics."""
    wide = np.tile(np.eye(4), (len(cam2img), 1, 1))
    wide[:, :3, :3] = cam2img
    return wide @ lidar2cam


def decode_image(data: Encoded, where: str) -> NDArray[np.uint8]:
    """Decode a JPEG to (h, w, 3) uint8, BGR.

    Raises:
        DataError: it is no JPEG, or is cut short (some versions of OpenCV would fill the rest with grey).
    """
    starts = data[:2] == b"\xff\xd8"
    whole = starts and bytes(data[-_TAIL:]).rstrip(b"\x00").endswith(b"\xff\xd9")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if whole else None
    if image is None:
        kind = "is cut short" if starts else "is no JPEG image"
        raise DataError(f"{where}: {kind} ({len(data)} bytes); restore the file")
    return np.asarray(image, np.uint8)


def parse_points(data: bytes, where: str) -> NDArray[np.float32]:
    """Parse a ``.pcd.bin`` to (N, 5) float32: x, y, z in m, intensity, and 0 for the time lag in s.

    The time lag replaces the file's fifth number, the ring index, as in CMT and mmdet3d.

    Raises:
        DataError: it holds no point, a part of a point, or a number that is not finite.
    """
    if not data or len(data) % POINT_BYTES:
        raise DataError(
            f"{where}: {len(data)} bytes is no whole number of points of {POINT_BYTES} bytes (five float32); "
            "the file is cut short, restore it"
        )
    points = np.frombuffer(data, "<f4").reshape(-1, 5).astype(np.float32)
    if not np.isfinite(points[:, :4]).all():
        raise DataError(f"{where}: holds coordinates that are not finite; restore the file")
    points[:, 4] = 0
    return points


def load_points(record: FrameRecord, remove_close: bool = False) -> NDArray[np.float32]:
    """Read the key frame's scan and its sweeps as one (N, 5) float32 cloud in the key frame's LiDAR frame.

    Args:
        record: the frame.
        remove_close: drop the ego vehicle's own returns from the sweeps.
    """
    clouds = [parse_points(read_bytes(record.lidar_path, record.root), str(record.lidar_path))]
    for sweep in record.sweeps:
        cloud = parse_points(read_bytes(sweep.path, record.root), str(sweep.path))
        if remove_close:
            cloud = cloud[(np.abs(cloud[:, :2]) >= EGO_RADIUS_M).any(axis=1)]
        cloud[:, :3] = cloud[:, :3] @ sweep.to_key[:3, :3].T + sweep.to_key[:3, 3]
        cloud[:, 4] = sweep.lag_s
        clouds.append(cloud)
    return np.concatenate(clouds)
