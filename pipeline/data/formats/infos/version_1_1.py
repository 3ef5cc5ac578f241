"""Frames of info files of format 1.1 (mmdet3d 1.1 and later): matrices, and one entry per object."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.settings import CLASSES
from pipeline.data import sensors
from pipeline.data.formats.infos.frame_reader import NO_SHOT, EarlierScan, FrameReader, Shot
from pipeline.data.formats.infos.parts import MICROSECONDS, Content, Objects, ReadFrame, refuse_foreign
from pipeline.data.safe_pickle import MAKE
from pipeline.data.sample import DataError

MMDET3D_CLASSES = (
    "car",
    "truck",
    "trailer",
    "bus",
    "construction_vehicle",
    "bicycle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "barrier",
)
"""The order in which mmdet3d's NuScenesDataset numbers the classes of info files that name none."""

IGNORED = -1
"""Label of objects that are of none of the classes."""


def read_1_1(file: Content) -> ReadFrame:
    """Return the reader of the frames of a file; DataError if it is of another version or other classes."""
    meta = file.content.get("metainfo", {})
    version = meta.get("info_version", "1.1") if isinstance(meta, dict) else meta
    if version != "1.1" or "data_list" not in file.content:
        raise DataError(
            f"{file.path}: info version {sensors.show(version)} with {sensors.show(sorted(file.content))}; "
            f"expected 1.1 with data_list, or infos of 1.0; {MAKE}"
        )
    categories = meta.get("categories", {name: label for label, name in enumerate(MMDET3D_CLASSES)})
    if not isinstance(categories, dict):
        raise sensors.wrong(str(file.path), "metainfo.categories", categories, "names of classes with labels")
    refuse_foreign(file.path, [str(name) for name in categories])
    names = {label: str(name) for name, label in categories.items()}
    scene = str(sensors.show(meta.get("version", file.path.stem))).strip("'")
    return lambda info: _Frame(info, file, scene, names).record()


class _Frame(FrameReader):
    """A frame of format 1.1.

    Args:
        info: the frame.
        file: the info file.
        scene: name of its scene, if the frame has none.
        names: label -> name of a class.
    """

    sweeps_at = "lidar_sweeps"
    per_unit = MICROSECONDS

    def __init__(self, info: Mapping[str, Any], file: Content, scene: str, names: Mapping[Any, str]) -> None:
        super().__init__(info, file, scene)
        self._names = names

    def scan(self) -> tuple[Any, int | None]:
        lidar = self.info["lidar_points"]
        stated = lidar.get("num_pts_feats")
        return lidar["lidar_path"], sensors.columns(stated, self.where, "lidar_points.num_pts_feats")

    def poses(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the poses. mmdet3d's loaders ask for none; only the evaluation does, and it reads tables."""
        named = {
            "lidar_points.lidar2ego": self.info["lidar_points"].get("lidar2ego"),
            "ego2global": self.info.get("ego2global"),
        }
        first, second = (
            np.eye(4) if value is None else sensors.transform(value, self.where, name)
            for name, value in named.items()
        )
        return first, second

    def shot(self, camera: str) -> Shot:
        shot = self.info["images"].get(camera)
        if not isinstance(shot, dict) or shot.get("img_path") is None:
            return NO_SHOT
        return Shot(
            self.file.locate(shot["img_path"], camera),
            sensors.intrinsic(shot.get("cam2img"), self.where, f"{camera}.cam2img"),
            sensors.transform(shot.get("lidar2cam"), self.where, f"{camera}.lidar2cam"),
        )

    def earlier_scan(self, sweep: Mapping[str, Any], field: str) -> EarlierScan:
        """Return a sweep.

        ``lidar2sensor`` maps the key frame to the sweep; its inverse maps the sweep's points. (mmdet3d 1.4's
        LoadPointsFromMultiSweeps subtracts the shift without rotating it, which is an error.)
        """
        lidar = sweep["lidar_points"]
        return EarlierScan(
            lidar["lidar_path"],
            sensors.transform(lidar.get("lidar2sensor"), self.where, f"{field}.lidar2sensor"),
            sensors.columns(lidar.get("num_pts_feats"), self.where, f"{field}.num_pts_feats"),
        )

    def objects(self) -> Objects:
        """Return the objects of the ten classes.

        ``bbox_3d`` is x, y, z, length, width, height, yaw in the LiDAR frame. z is at the centre of the box,
        because mmdet3d's NuScenesDataset reads it with origin (0.5, 0.5, 0.5).
        """
        made = Objects([], [], [], [], [])
        for index, instance in enumerate(self.info.get("instances") or ()):
            label = instance["bbox_label_3d"]
            if label == IGNORED:
                continue
            if not isinstance(label, int | np.integer) or label not in self._names:
                field = f"instances[{index}].bbox_label_3d"
                raise sensors.wrong(self.where, field, label, "a label of categories")
            name = self._names[label]
            if name not in CLASSES:
                self.file.others[name[:60]] += 1
                continue
            unknown = (np.nan, np.nan)
            try:
                made.rows.append([*instance["bbox_3d"], *instance.get("velocity", unknown)])
            except TypeError as problem:
                raise sensors.wrong(
                    self.where, f"instances[{index}]", instance, "bbox_3d and velocity"
                ) from problem
            made.names.append(name)
            made.lidar.append(instance.get("num_lidar_pts"))
            made.radar.append(instance.get("num_radar_pts"))
            made.flags.append(instance.get("bbox_3d_isvalid"))
        return made
