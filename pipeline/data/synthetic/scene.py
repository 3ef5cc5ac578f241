"""Generates the files of one scene, and the log from which its tables are made."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.data.sample import CAMERAS
from pipeline.data.synthetic.camera import shoot, views
from pipeline.data.synthetic.lidar import points_in_boxes, scan
from pipeline.data.synthetic.nuscenes_writer import LIDAR, map_file, sensor_file
from pipeline.data.synthetic.object_classes import KINDS
from pipeline.data.synthetic.ray_casting import solids_at
from pipeline.data.synthetic.scene_log import Annotation, Frame, Scan, SceneLog
from pipeline.data.synthetic.sensor_rig import Rig
from pipeline.data.synthetic.world import BUILDINGS_M, Actor, World, build_world

PERIOD_S = 0.5
"""Time between key frames: nuScenes annotates at 2 Hz."""

FIRST_US = 1_532_402_927_000_000
"""Time of nuScenes' log n015-2018-07-24; scene n starts n times 1000 s later."""

MAP_M = 320.0
"""Side of a scene's map in m; the street's middle is at its centre."""

MAP_RESOLUTION_M = 0.1
"""Metre per pixel of the maps, as the devkit reads them."""

STREET_MIDDLE_M = 30.0
"""Place s on the street that lies at the centre of the map: half of what the ego drives in ten seconds."""


@dataclass(frozen=True)
class SceneTask:
    """One scene to make: dataset root, seed, scene name, number of key frames, night or day, sensors."""

    root: Path
    seed: int
    name: str
    frames: int
    night: bool
    rig: Rig


def make_scene(task: SceneTask) -> SceneLog:
    """Write the files of one scene and return what its tables need."""
    cv2.setNumThreads(1)  # the processes share the cores already
    number = int(task.name.removeprefix("scene-"))
    world = build_world(np.random.default_rng([task.seed, number]), task.frames * PERIOD_S, task.night)
    first_us = FIRST_US + number * 1_000_000_000
    logfile = "n015-2018-07-24-11-22-45+0800"
    frames = []
    for index in range(task.frames):
        time_s = index * PERIOD_S
        stamp = first_us + round(time_s * 1e6)
        annotations = _make_frame(task, world, logfile, (number, index, time_s, stamp))
        sweeps = _make_sweeps(task, world, logfile, (number, index, time_s, stamp))
        frames.append(Frame(stamp, _to_global(world, world.ego_at(time_s)), annotations, sweeps))
    _draw_map(world, task.root / map_file(task.seed, task.name))
    kind = "night" if task.night else "day"
    return SceneLog(
        task.name, logfile, f"Generated street, {kind}, seed {task.seed}", tuple(frames), task.rig
    )


def _make_frame(
    task: SceneTask, world: World, logfile: str, when: tuple[int, int, float, int]
) -> tuple[Annotation, ...]:
    """Write the seven files of a key frame and return its annotations."""
    number, index, time_s, stamp = when
    solids = solids_at(world, time_s)
    points, _ = scan(world, solids, np.random.default_rng([task.seed, number, index, len(CAMERAS)]))
    (task.root / sensor_file(logfile, LIDAR, stamp)).write_bytes(points.astype("<f4").tobytes())
    seen, covered = np.zeros(len(world.actors), np.int64), np.zeros(len(world.actors), np.int64)
    for place, view in enumerate(views(task.rig)):
        rng = np.random.default_rng([task.seed, number, index, place])
        jpeg, hits = shoot(view, world, solids, time_s, rng)
        (task.root / sensor_file(logfile, view.camera.name, stamp)).write_bytes(jpeg)
        seen += hits.seen
        covered += hits.covered
    counts = points_in_boxes(points, solids)
    # nuScenes annotates what at least one LiDAR point touches.
    return tuple(
        _annotation(
            world, actor, place, time_s, int(counts[place]), float(seen[place] / max(covered[place], 1))
        )
        for place, actor in enumerate(world.actors)
        if counts[place] and KINDS[actor.kind].category
    )


def _make_sweeps(
    task: SceneTask, world: World, logfile: str, when: tuple[int, int, float, int]
) -> tuple[Scan, ...]:
    """Write the scans between the key frame before and this one; earliest first."""
    number, index, time_s, stamp = when
    step_us = round(PERIOD_S * 1e6) // (task.rig.sweeps + 1)
    made = []
    for back in range(task.rig.sweeps, 0, -1):
        lag_us = back * step_us
        earlier = time_s - lag_us * 1e-6
        seed = [task.seed, number, index, len(CAMERAS) + back]
        points, _ = scan(world, solids_at(world, earlier), np.random.default_rng(seed))
        path = task.root / sensor_file(logfile, LIDAR, stamp - lag_us, key=False)
        path.write_bytes(points.astype("<f4").tobytes())
        made.append(Scan(stamp - lag_us, _to_global(world, world.ego_at(earlier))))
    return tuple(made)


def _annotation(
    world: World, actor: Actor, place: int, time_s: float, num_points: int, visible: float
) -> Annotation:
    x, y, yaw = _to_global(world, actor.at(time_s))
    length, width, height = actor.size
    return Annotation(
        actor=place,
        category=KINDS[actor.kind].category,
        attribute=_attribute(actor),
        centre=(x, y, height / 2),
        size=(width, length, height),
        yaw=yaw,
        visible=visible,
        num_points=num_points,
    )


def _attribute(actor: Actor) -> str:
    """Return the nuScenes attribute; barriers, cones and carts have none."""
    moving = actor.speed != 0.0
    if actor.kind in ("motorcycle", "bicycle"):
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if actor.kind == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    if KINDS[actor.kind].category.startswith("vehicle."):
        return "vehicle.moving" if moving else "vehicle.stopped" if actor.kind == "bus" else "vehicle.parked"
    return ""


def _to_global(world: World, pose: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return x, y, yaw in the global frame of s, d, yaw in the road frame."""
    cos, sin = np.cos(world.heading), np.sin(world.heading)
    s, d, yaw = pose[0] - STREET_MIDDLE_M, pose[1], pose[2] + world.heading
    return float(MAP_M / 2 + cos * s - sin * d), float(MAP_M / 2 + sin * s + cos * d), float(yaw)


def _draw_map(world: World, path: Path) -> None:
    """Write the map of a scene: white where one can drive, rows from north to south as in nuScenes."""
    side = round(MAP_M / MAP_RESOLUTION_M)
    ends = [(s, d) for s, d in ((-110, -1), (170, -1), (170, 1), (-110, 1))]
    corners = [_to_global(world, (s, d * (BUILDINGS_M - 6), 0.0))[:2] for s, d in ends]
    pixels = np.array([(x / MAP_RESOLUTION_M, side - y / MAP_RESOLUTION_M) for x, y in corners])
    image = np.zeros((side, side), np.uint8)
    cv2.fillPoly(image, [np.round(pixels).astype(np.int32)], 255)
    if not cv2.imwrite(str(path), image):
        raise OSError(f"cannot write {path}")
