"""Info files: key frames listed by mmdet3d's converters (info format 1.1, a pickle), read safely.

A pickle can run any code when it is opened. This reader admits plain containers, numbers and numpy
arrays, and refuses a file that names anything else.
"""

import io
import pickle
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.loader import FileSource
from pipeline.data.sample import CAMERAS, DataError
from pipeline.data.tables import FrameRecord
from pipeline.settings import CLASSES

FORMATS = ("1.1",)
"""Info versions read here; 1.0 keeps other keys and other box conventions."""

# numpy 1 wrote numpy.core, numpy 2 writes numpy._core; both name the same functions.
_BROKEN = (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError)
"""What the unpickler raises for a file that is cut short or no pickle."""

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
        path: the ``.pkl`` file; image and point paths in it are relative to ``root``.
        root: folder of the files; by default the folder of ``path``.

    Raises:
        DataError: not an info file, another format, a forbidden object, or a missing key.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        super().__init__(read_infos(path, root or path.parent))


def read_infos(path: Path, root: Path) -> list[FrameRecord]:
    """Read an info file; boxes of classes outside the ten, and ignored ones (label -1), are left out."""
    content = _unpickle(path)
    try:
        meta = content["metainfo"]
        version = meta["info_version"]
        if version not in FORMATS:
            raise DataError(f"{path}: info version {version!r}; expected {' or '.join(FORMATS)}")
        names = {label: name for name, label in meta["categories"].items()}
        frames = content["data_list"]
        scene = str(meta.get("version", path.stem))
        return [_record(frame, names, root, scene) for frame in frames]
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{path}: not an mmdet3d info file of version {' or '.join(FORMATS)} "
            f"({type(error).__name__}: {error}); make it with mmdet3d's tools/create_data.py"
        ) from error


class _Reader(pickle.Unpickler):
    """An unpickler that finds nothing but what ``_ADMITTED`` lists."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an admitted object or refuse."""
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only numpy arrays and plain values are admitted"
            ) from None


def _unpickle(path: Path) -> Mapping[str, Any]:
    try:
        content = _Reader(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except _BROKEN as error:
        raise DataError(f"{path}: refused: {error or 'not a pickle'}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; expected an mmdet3d info dict")
    return content


def _record(info: Mapping[str, Any], names: Mapping[int, str], root: Path, scene: str) -> FrameRecord:
    cameras = [info["images"][camera] for camera in CAMERAS]
    lidar = info["lidar_points"]
    boxes, labels, num_points = _boxes(info["instances"], names)
    return FrameRecord(
        token=str(info["token"]),
        scene=scene,
        timestamp_us=round(info["timestamp"] * 1e6),  # seconds to microseconds
        image_paths=tuple(root / camera["img_path"] for camera in cameras),
        cam2img=np.array([np.array(camera["cam2img"])[:3, :3] for camera in cameras], np.float64),
        lidar2cam=np.array([camera["lidar2cam"] for camera in cameras], np.float64),
        lidar_path=root / lidar["lidar_path"],
        sweeps=(),  # sweeps of info files name raw files whose poses differ between converters
        lidar2ego=np.array(lidar["lidar2ego"], np.float64),
        ego2global=np.array(info["ego2global"], np.float64),
        boxes=boxes,
        labels=labels,
        num_points=num_points,
    )


def _boxes(
    instances: list[Mapping[str, Any]], names: Mapping[int, str]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Return boxes (M, 9), labels (M,), LiDAR points (M,).

    ``bbox_3d`` is x, y, z, length, width, height, yaw in the LiDAR frame, and z is the middle of
    the box: mmdet3d's NuScenesDataset reads it with origin (0.5, 0.5, 0.5).
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
