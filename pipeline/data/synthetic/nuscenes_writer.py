"""Writes the thirteen tables of nuScenes v1.0 for a generated dataset, with their names and links."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.synthetic.scene_log import Annotation, Scan, SceneLog
from pipeline.data.synthetic.sensor_rig import cameras, lidar2ego

Record = dict[str, Any]

CATEGORIES = (
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.wheelchair",
    "human.pedestrian.stroller",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.construction_worker",
    "animal",
    "vehicle.car",
    "vehicle.motorcycle",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.truck",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.trailer",
    "movable_object.barrier",
    "movable_object.trafficcone",
    "movable_object.pushable_pullable",
    "movable_object.debris",
    "static_object.bicycle_rack",
)

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)

VISIBILITY = ("v0-40", "v40-60", "v60-80", "v80-100")

LIDAR = "LIDAR_TOP"


def sensor_file(logfile: str, channel: str, timestamp_us: int, key: bool = True) -> str:
    """Return the path of a sensor's file, relative to the dataset root, with nuScenes' naming.

    Args:
        logfile: name of the log.
        channel: name of the sensor.
        timestamp_us: time in microseconds.
        key: whether it belongs to a key frame; sweeps are in another folder.
    """
    ending = "pcd.bin" if channel == LIDAR else "jpg"
    folder = "samples" if key else "sweeps"
    return f"{folder}/{channel}/{logfile}__{channel}__{timestamp_us}.{ending}"


def map_file(seed: int, name: str) -> str:
    """Return a scene's map, relative to the dataset root."""
    return f"maps/{_token(seed, 'mapfile', name)}.png"


def build_tables(seed: int, scenes: Sequence[SceneLog]) -> dict[str, list[Record]]:
    """Return the thirteen tables as lists of records."""
    tables: dict[str, list[Record]] = {
        "category": [_named(seed, "category", name) for name in CATEGORIES],
        "attribute": [_named(seed, "attribute", name) for name in ATTRIBUTES],
        "visibility": [
            {
                "token": str(index + 1),
                "level": level,
                "description": f"visibility of whole object is {level[1:]} %",
            }
            for index, level in enumerate(VISIBILITY)
        ],
        "sensor": [
            {
                "token": _token(seed, "sensor", channel),
                "channel": channel,
                "modality": "lidar" if channel == LIDAR else "camera",
            }
            for channel, _ in _mounts()
        ],
    }
    for table in ("instance", "calibrated_sensor", "ego_pose", "log", "scene", "sample", "sample_data"):
        tables[table] = []
    tables["sample_annotation"], tables["map"] = [], []
    for scene in scenes:
        _add_scene(tables, seed, scene)
        _add_data(tables, seed, scene)
        _add_annotations(tables, seed, scene)
    return tables


def write_tables(folder: Path, tables: dict[str, list[Record]]) -> None:
    """Write each table to ``folder/<table>.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(records, indent=0))


def _token(seed: int, *what: object) -> str:
    """Return a token of 32 hex digits like those of nuScenes; it depends on the seed."""
    return hashlib.md5(repr((seed, *what)).encode(), usedforsecurity=False).hexdigest()


def _named(seed: int, table: str, name: str) -> Record:
    return {"token": _token(seed, table, name), "name": name, "description": name.replace(".", ", ")}


def _linked(tokens: Sequence[str], index: int) -> dict[str, str]:
    """Return the links of a record to its neighbours in a chain; empty at the ends."""
    return {
        "prev": tokens[index - 1] if index else "",
        "next": tokens[index + 1] if index + 1 < len(tokens) else "",
    }


def _quaternion(yaw: float) -> list[float]:
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def _mounts() -> list[tuple[str, NDArray[np.float64]]]:
    """Return each sensor's channel and its (4, 4) pose in the ego frame."""
    return [(camera.name, camera.camera2ego) for camera in cameras()] + [(LIDAR, lidar2ego())]


def _add_scene(tables: dict[str, list[Record]], seed: int, scene: SceneLog) -> None:
    samples = [_token(seed, "sample", scene.name, index) for index in range(len(scene.frames))]
    log, token = _token(seed, "log", scene.name), _token(seed, "scene", scene.name)
    date = scene.logfile.split("-", 1)[1][:10]
    tables["log"].append(
        {
            "token": log,
            "logfile": scene.logfile,
            "vehicle": scene.logfile.split("-", 1)[0],
            "date_captured": date,
            "location": "singapore-onenorth",
        }
    )
    tables["map"].append(
        {
            "token": _token(seed, "map", scene.name),
            "log_tokens": [log],
            "category": "semantic_prior",
            "filename": map_file(seed, scene.name),
        }
    )
    tables["scene"].append(
        {
            "token": token,
            "log_token": log,
            "nbr_samples": len(samples),
            "first_sample_token": samples[0],
            "last_sample_token": samples[-1],
            "name": scene.name,
            "description": scene.description,
        }
    )
    for index, frame in enumerate(scene.frames):
        links = _linked(samples, index)
        tables["sample"].append(
            {"token": samples[index], "timestamp": frame.timestamp_us, **links, "scene_token": token}
        )


def _add_data(tables: dict[str, list[Record]], seed: int, scene: SceneLog) -> None:
    """Add calibrations, files and ego poses; a pose has the token of its file, as in nuScenes."""
    from pyquaternion import Quaternion

    made = {camera.name: camera for camera in cameras(scene.rig)}
    for channel, pose in _mounts():
        camera = made.get(channel)
        calibration = _token(seed, "calibrated_sensor", scene.name, channel)
        tables["calibrated_sensor"].append(
            {
                "token": calibration,
                "sensor_token": _token(seed, "sensor", channel),
                "translation": pose[:3, 3].tolist(),
                "rotation": Quaternion(matrix=pose).elements.tolist(),
                "camera_intrinsic": camera.intrinsic.tolist() if camera else [],
            }
        )
        shots = _shots(seed, scene, channel)
        for place, (token, index, scan, key) in enumerate(shots):
            tables["sample_data"].append(
                {
                    "token": token,
                    "sample_token": _token(seed, "sample", scene.name, index),
                    "ego_pose_token": token,
                    "calibrated_sensor_token": calibration,
                    "timestamp": scan.timestamp_us,
                    "fileformat": "jpg" if camera else "pcd",
                    "is_key_frame": key,
                    "height": camera.height if camera else 0,
                    "width": camera.width if camera else 0,
                    "filename": sensor_file(scene.logfile, channel, scan.timestamp_us, key),
                    **_linked([shot[0] for shot in shots], place),
                }
            )
            tables["ego_pose"].append(
                {
                    "token": token,
                    "timestamp": scan.timestamp_us,
                    "rotation": _quaternion(scan.ego[2]),
                    "translation": [scan.ego[0], scan.ego[1], 0.0],
                }
            )


def _shots(seed: int, scene: SceneLog, channel: str) -> list[tuple[str, int, Scan, bool]]:
    """Return per file of a sensor: token, index of the key frame, scan, whether it is the key frame's own."""
    shots = []
    for index, frame in enumerate(scene.frames):
        for scan in frame.sweeps if channel == LIDAR else ():
            token = _token(seed, "sweep", scene.name, channel, scan.timestamp_us)
            shots.append((token, index, scan, False))
        token = _token(seed, "data", scene.name, channel, index)
        shots.append((token, index, Scan(frame.timestamp_us, frame.ego), True))
    return shots


def _add_annotations(tables: dict[str, list[Record]], seed: int, scene: SceneLog) -> None:
    tracks: dict[int, list[tuple[int, Annotation]]] = {}
    for index, frame in enumerate(scene.frames):
        for annotation in frame.annotations:
            tracks.setdefault(annotation.actor, []).append((index, annotation))
    for actor, track in sorted(tracks.items()):
        tokens = [_token(seed, "annotation", scene.name, actor, index) for index, _ in track]
        instance = _token(seed, "instance", scene.name, actor)
        tables["instance"].append(
            {
                "token": instance,
                "category_token": _token(seed, "category", track[0][1].category),
                "nbr_annotations": len(track),
                "first_annotation_token": tokens[0],
                "last_annotation_token": tokens[-1],
            }
        )
        for place, (index, annotation) in enumerate(track):
            tables["sample_annotation"].append(
                {
                    "token": tokens[place],
                    "sample_token": _token(seed, "sample", scene.name, index),
                    "instance_token": instance,
                    "visibility_token": str(1 + int(np.digitize(annotation.visible, (0.4, 0.6, 0.8)))),
                    "attribute_tokens": [_token(seed, "attribute", annotation.attribute)]
                    if annotation.attribute
                    else [],
                    "translation": list(annotation.centre),
                    "size": list(annotation.size),
                    "rotation": _quaternion(annotation.yaw),
                    **_linked(tokens, place),
                    "num_lidar_pts": annotation.num_points,
                    "num_radar_pts": 0,
                }
            )
