"""Writes info files of format 1.1, for mmdet3d's own NuScenesDataset and tools."""

import errno
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config.settings import CLASSES
from pipeline.data.formats.frame_record import FrameRecord
from pipeline.data.formats.infos.parts import MICROSECONDS
from pipeline.data.formats.infos.version_1_1 import MMDET3D_CLASSES
from pipeline.data.sample import CAMERAS, DataError
from pipeline.data.sensors import COLUMNS
from pipeline.storage.files import atomic_file


def write_infos(records: Sequence[FrameRecord], path: Path, version: str) -> None:
    """Write frames as an info file of format 1.1, for mmdet3d's own NuScenesDataset and tools.

    Args:
        records: frames of a dataset in nuScenes layout.
        path: the ``.pkl`` file; must not exist. mmdet3d finds the files through ``data_root`` and
            ``data_prefix=dict(pts='samples/LIDAR_TOP', sweeps='sweeps/LIDAR_TOP', CAM_FRONT=...)``.
        version: nuScenes version.

    Raises:
        DataError: the file exists or cannot be written.
    """
    categories = {name: label for label, name in enumerate(MMDET3D_CLASSES)}
    content = {
        "metainfo": {
            "categories": categories,
            "dataset": "nuscenes",
            "version": version,
            "info_version": "1.1",
        },
        "data_list": [_info(record, index) for index, record in enumerate(records)],
    }
    try:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        with atomic_file(path) as file:
            pickle.dump(content, file)
    except OSError as problem:
        raise DataError(f"{path}: cannot be written ({problem.strerror}); choose another file") from problem


def _info(record: FrameRecord, index: int) -> dict[str, Any]:
    time_s = record.timestamp_us / MICROSECONDS
    boxes = zip(record.boxes.tolist(), record.labels, record.num_points, record.valid, strict=True)
    shots = zip(CAMERAS, record.image_paths, record.cam2img, record.lidar2cam, strict=True)
    return {
        "sample_idx": index,
        "token": record.token,
        "scene_name": record.scene,
        "timestamp": time_s,
        "ego2global": record.ego2global.tolist(),
        "lidar_points": {
            "num_pts_feats": record.columns or COLUMNS,
            "lidar_path": record.lidar_path.name,
            "lidar2ego": record.lidar2ego.tolist(),
        },
        "lidar_sweeps": [
            {
                "timestamp": (record.timestamp_us - round(sweep.lag_s * MICROSECONDS)) / MICROSECONDS,
                "lidar_points": {
                    "num_pts_feats": sweep.columns or COLUMNS,
                    "lidar_path": str(Path(*sweep.path.parts[-3:])),
                    "lidar2sensor": sweep.lidar2sensor.tolist(),
                },
            }
            for sweep in record.sweeps
        ],
        "images": {
            camera: {"img_path": path.name, "cam2img": inside.tolist(), "lidar2cam": outside.tolist()}
            for camera, path, inside, outside in shots
            if path is not None
        },
        "instances": [
            {
                "bbox_3d": box[:7],
                "bbox_label_3d": MMDET3D_CLASSES.index(CLASSES[label]),
                "bbox_label": MMDET3D_CLASSES.index(CLASSES[label]),
                "velocity": box[7:],
                "num_lidar_pts": int(count),
                "bbox_3d_isvalid": bool(valid),
            }
            for box, label, count, valid in boxes
        ],
    }
