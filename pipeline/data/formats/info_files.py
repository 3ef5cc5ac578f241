"""Reads and writes mmdet3d's info files (format 1.1, a pickle) safely.

A pickle can run any code when it is opened. This reader accepts only plain containers, numbers and numpy
arrays, and refuses a file that names anything else.
"""

import io
import pickle
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.settings import CLASSES
from pipeline.data.formats.file_source import FileSource
from pipeline.data.formats.frame_record import FrameRecord, Sweep
from pipeline.data.safe_paths import inside
from pipeline.data.sample import CAMERAS, DataError
from pipeline.data.source import READ_ALL, Reading

FORMATS = ("1.1",)
"""Info versions that can be read. Version 1.0 has other keys and box conventions."""

MAKE = "make it with mmdet3d's tools/create_data.py or `biaswise data infos`"
"""Advice in error messages about files that cannot be used."""

LIDAR = "LIDAR_TOP"

CALIBRATION: Mapping[str, Mapping[str, tuple[tuple[int, ...], ...]]] = {
    "camera": {"cam2img": ((3, 3), (3, 4), (4, 4)), "lidar2cam": ((4, 4),)},
    "lidar": {"lidar2ego": ((4, 4),)},
}
"""Keys that each sensor's entry must have -> their allowed shapes."""

_BROKEN = (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError)
"""Errors of the unpickler for a file that is cut short or no pickle."""

# numpy 1 wrote numpy.core, numpy 2 writes numpy._core; both name the same functions.
_CORE = import_module("numpy._core.multiarray")
_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.multiarray", name): getattr(_CORE, name)
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    },
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),  # how protocol 2 spells bytes
    **{("builtins", kind.__name__): kind for kind in (set, frozenset, complex, bytearray, slice, range)},
}


class InfoSource(FileSource):
    """The frames of an info file as samples.

    Args:
        path: the ``.pkl`` file. Bare file names in it are in ``root/samples/<channel>`` and
            ``root/sweeps/<channel>`` if ``root`` has such folders, else in ``root``.
        root: folder of the files; None: the folder of ``path``.
        reading: what is read of a frame.

    Raises:
        DataError: not an info file, another format, a forbidden object, or a missing key.
    """

    def __init__(self, path: Path, root: Path | None = None, reading: Reading = READ_ALL) -> None:
        super().__init__(read_infos(path, root or path.parent), reading)


def read_infos(path: Path, root: Path) -> list[FrameRecord]:
    """Read an info file. Boxes of classes outside the ten, and ignored ones (label -1), are dropped."""
    content = unpickle(path)
    try:
        meta = content["metainfo"]
        version = meta["info_version"]
        if version not in FORMATS:
            raise DataError(f"{path}: info version {version!r}; expected {' or '.join(FORMATS)}; {MAKE}")
        names = {label: name for name, label in meta["categories"].items()}
        frames = content["data_list"]
        scene = str(meta.get("version", path.stem))
        return [_record(frame, names, root, scene) for frame in frames]
    except DataError:
        raise
    except (KeyError, TypeError, IndexError, ValueError, np.linalg.LinAlgError) as error:
        raise DataError(
            f"{path}: not an mmdet3d info file of version {' or '.join(FORMATS)} "
            f"({type(error).__name__}: {error}); {MAKE}"
        ) from error


class _Reader(pickle.Unpickler):
    """An unpickler that finds only the names in ``_ADMITTED``."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an object of ``_ADMITTED``, or raise UnpicklingError."""
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only numpy arrays and plain values are admitted"
            ) from None


def unpickle(path: Path) -> Mapping[str, Any]:
    """Read a pickled dict of plain values and arrays. DataError if it is damaged or names anything else."""
    try:
        content = _Reader(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except _BROKEN as error:
        raise DataError(f"{path}: refused: {error or 'not a pickle'}; {MAKE}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; expected a dict")
    return content


def _record(info: Mapping[str, Any], names: Mapping[int, str], root: Path, scene: str) -> FrameRecord:
    token = str(info["token"])
    cameras = [_calibrated(info["images"], camera, token) for camera in CAMERAS]
    lidar = _calibrated(info, "lidar_points", token)
    time_s = float(info["timestamp"])
    boxes, labels, num_points = _boxes(info["instances"], names)
    return FrameRecord(
        token=token,
        scene=scene,
        timestamp_us=round(time_s * 1e6),  # seconds to microseconds
        image_paths=tuple(
            _locate(root, shot["img_path"], camera) for shot, camera in zip(cameras, CAMERAS, strict=True)
        ),
        cam2img=np.array([np.array(camera["cam2img"])[:3, :3] for camera in cameras], np.float64),
        lidar2cam=np.array([camera["lidar2cam"] for camera in cameras], np.float64),
        lidar_path=_locate(root, lidar["lidar_path"], LIDAR),
        sweeps=tuple(_sweep(sweep, time_s, root) for sweep in info.get("lidar_sweeps", ())),
        lidar2ego=np.array(lidar["lidar2ego"], np.float64),
        ego2global=np.array(info["ego2global"], np.float64),
        boxes=boxes,
        labels=labels,
        num_points=num_points,
        root=root,
    )


def _calibrated(info: Mapping[str, Any], sensor: str, token: str) -> Mapping[str, Any]:
    """Return a sensor's entry; DataError if its calibration is missing or has another shape."""
    entry: Mapping[str, Any] = info[sensor]
    for key, shape in CALIBRATION["lidar" if sensor == "lidar_points" else "camera"].items():
        got = np.shape(entry[key]) if entry.get(key) is not None else "nothing"
        if got not in shape:
            raise DataError(
                f"frame {token}: {sensor} has {got} as {key}, expected a matrix of shape "
                f"{' or '.join(map(str, shape))}; make the info file anew from calibrated data"
            )
    return entry


def _sweep(sweep: Mapping[str, Any], time_s: float, root: Path) -> Sweep:
    """Read one earlier scan.

    ``lidar2sensor`` maps the key frame to the sweep; its inverse maps the sweep's points. (mmdet3d 1.4's
    LoadPointsFromMultiSweeps subtracts the shift without rotating it, which is an error.)
    """
    lidar = sweep["lidar_points"]
    path = str(lidar["lidar_path"])
    folder = "samples" if "samples" in path else "sweeps"  # an earlier key frame is listed as a sweep
    return Sweep(
        path=_locate(root, Path(path).name, LIDAR, folder),
        to_key=np.linalg.inv(np.array(lidar["lidar2sensor"], np.float64)).astype(np.float64),
        lag_s=time_s - float(sweep["timestamp"]),
    )


def _locate(root: Path, name: str, channel: str, folder: str = "samples") -> Path:
    """Return the path of a file of an info; bare names are in mmdet3d's ``data_prefix`` of their sensor."""
    prefix = f"{folder}/{channel}"
    bare = "/" not in name and (root / prefix).is_dir()
    return inside(root, f"{prefix}/{name}" if bare else name, "an info file")


def _boxes(
    instances: list[Mapping[str, Any]], names: Mapping[int, str]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Return boxes (M, 9), labels (M,), LiDAR points (M,).

    ``bbox_3d`` is x, y, z, length, width, height, yaw in the LiDAR frame. z is at the centre of the box,
    because mmdet3d's NuScenesDataset reads it with origin (0.5, 0.5, 0.5).
    """
    rows, labels, counts = [], [], []
    for instance in instances:
        name = names.get(instance["bbox_label_3d"])
        if name not in CLASSES:
            continue
        rows.append([*instance["bbox_3d"], *instance["velocity"]])
        labels.append(CLASSES.index(name))
        counts.append(int(instance["num_lidar_pts"]))
    return (
        np.array(rows, np.float32).reshape(-1, 9),
        np.array(labels, np.int64),
        np.array(counts, np.int64),
    )


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
"""The order in which mmdet3d's NuScenesDataset numbers the classes of info files."""


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
            "info_version": FORMATS[-1],
        },
        "data_list": [_info(record, index) for index, record in enumerate(records)],
    }
    try:
        with path.open("xb") as file:
            pickle.dump(content, file)
    except OSError as problem:
        raise DataError(f"{path}: cannot be written ({problem.strerror}); choose another file") from problem


def _info(record: FrameRecord, index: int) -> dict[str, Any]:
    time_s = record.timestamp_us * 1e-6
    boxes = zip(record.boxes.tolist(), record.labels, record.num_points, strict=True)
    shots = zip(CAMERAS, record.image_paths, record.cam2img, record.lidar2cam, strict=True)
    return {
        "sample_idx": index,
        "token": record.token,
        "timestamp": time_s,
        "ego2global": record.ego2global.tolist(),
        "lidar_points": {
            "num_pts_feats": 5,
            "lidar_path": record.lidar_path.name,
            "lidar2ego": record.lidar2ego.tolist(),
        },
        "lidar_sweeps": [
            {
                "timestamp": time_s - sweep.lag_s,
                "lidar_points": {
                    "lidar_path": str(Path(*sweep.path.parts[-3:])),
                    "lidar2sensor": np.linalg.inv(sweep.to_key).tolist(),
                },
            }
            for sweep in record.sweeps
        ],
        "images": {
            camera: {"img_path": path.name, "cam2img": inside.tolist(), "lidar2cam": outside.tolist()}
            for camera, path, inside, outside in shots
        },
        "instances": [
            {
                "bbox_3d": box[:7],
                "bbox_label_3d": MMDET3D_CLASSES.index(CLASSES[label]),
                "bbox_label": MMDET3D_CLASSES.index(CLASSES[label]),
                "velocity": box[7:],
                "num_lidar_pts": int(count),
                "bbox_3d_isvalid": bool(count > 0),
            }
            for box, label, count in boxes
        ],
    }
