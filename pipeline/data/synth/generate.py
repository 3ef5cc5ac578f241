"""Generate: a dataset in the layout of nuScenes v1.0-mini, the same bit for bit for the same seed."""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.data.sample import CAMERAS, DataError
from pipeline.data.synth.camera import shoot, views
from pipeline.data.synth.kinds import KINDS
from pipeline.data.synth.lidar import points_in_boxes, scan
from pipeline.data.synth.rays import solids_at
from pipeline.data.synth.tables import (
    LIDAR,
    Annotation,
    Frame,
    SceneLog,
    build_tables,
    map_file,
    sensor_file,
    write_tables,
)
from pipeline.data.synth.world import BUILDINGS_M, Actor, World, build_world
from pipeline.data.tables import split_scenes

EDITION = 1
"""Edition of the generator: raised whenever the same seed gives other data than before."""

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

NIGHT_EVERY = 5
"""One scene in five is at night."""

Progress = Callable[[int, int], None]
"""Called with the frames that are done and all frames."""


@dataclass(frozen=True)
class _Task:
    root: Path
    seed: int
    name: str
    frames: int
    night: bool


def generate(
    root: Path,
    seed: int,
    version: str = "v1.0-mini",
    frames_per_scene: int = 20,
    scenes_per_split: Mapping[str, int] | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> None:
    """Write a dataset; does nothing if ``root`` holds exactly this one already.

    The tables are written last, so a folder with tables is complete. Data depend on nothing but
    the arguments before ``workers``.

    Args:
        root: dataset root, made if it does not exist.
        seed: decides everything that is drawn.
        version: name of the tables folder; the devkit's evaluation of mini splits wants ``...mini``.
        frames_per_scene: key frames per scene, two a second.
        scenes_per_split: scenes of each devkit split, e.g. ``{"mini_train": 8, "mini_val": 2}``, which
            is the default; the first so many of the split's names are used.
        workers: processes.
        progress: called as frames get done.

    Raises:
        DataError: if an argument makes no sense, or ``root`` holds something else or cannot be written.
    """
    root = Path(root)
    wanted = {"mini_train": 8, "mini_val": 2} if scenes_per_split is None else dict(scenes_per_split)
    request = {
        "edition": EDITION,
        "seed": seed,
        "version": version,
        "frames_per_scene": frames_per_scene,
        "scenes_per_split": wanted,
    }
    if frames_per_scene < 1 or workers < 1 or seed < 0:
        raise DataError(
            f"frames_per_scene and workers must be at least 1 and seed at least 0, "
            f"got {frames_per_scene}, {workers} and {seed}"
        )
    names = _scene_names(wanted)
    if _is_done(root, version, request):
        return
    _make_folders(root)
    tasks = [
        _Task(root, seed, name, frames_per_scene, place % NIGHT_EVERY == NIGHT_EVERY - 1)
        for place, name in enumerate(names)
    ]
    logs: dict[str, SceneLog] = {}
    try:
        for log in _work(tasks, workers):
            logs[log.name] = log
            if progress:
                progress(len(logs) * frames_per_scene, len(tasks) * frames_per_scene)
        write_tables(root / f".{version}.part", build_tables(seed, [logs[name] for name in names]))
        os.replace(root / f".{version}.part", root / version)
        (root / "synth.json").write_text(json.dumps(request, indent=1))
    except OSError as problem:
        raise DataError(
            f"{root}: the dataset cannot be written ({problem}); free space or choose another"
        ) from problem


def _scene_names(wanted: Mapping[str, int]) -> list[str]:
    names: list[str] = []
    for split, count in wanted.items():
        held = split_scenes(split)
        if not 0 <= count <= len(held):
            raise DataError(f"split {split!r} has {len(held)} scenes, cannot make {count}")
        names += held[:count]
    if not names or len(set(names)) != len(names):
        raise DataError(f"expected splits that share no scene and at least one scene, got {dict(wanted)}")
    return names


def _is_done(root: Path, version: str, request: Mapping[str, object]) -> bool:
    """Return whether this dataset is here already; refuse to write over another one."""
    mark = root / "synth.json"
    if not (root / version).exists():
        return False
    held = json.loads(mark.read_text()) if mark.is_file() else None
    if held == request:
        return True
    what = "a dataset that was not generated" if held is None else f"another generated dataset ({held})"
    raise DataError(
        f"{root / version}: holds {what}; expected {dict(request)} or nothing, choose another folder"
    )


def _make_folders(root: Path) -> None:
    try:
        for folder in ("samples", "sweeps"):
            for channel in (*CAMERAS, LIDAR):
                (root / folder / channel).mkdir(parents=True, exist_ok=True)
        (root / "maps").mkdir(exist_ok=True)
    except OSError as problem:
        raise DataError(f"{root}: cannot be written ({problem.strerror}); choose another folder") from problem


def _work(tasks: list[_Task], workers: int) -> Iterator[SceneLog]:
    """Yield the scenes as they get done."""
    if min(workers, len(tasks)) == 1:
        yield from map(_make_scene, tasks)
        return
    # Spawned, not forked: a fork of a process that runs torch or OpenCV threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        for done in as_completed([pool.submit(_make_scene, task) for task in tasks]):
            yield done.result()


def _make_scene(task: _Task) -> SceneLog:
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
        frames.append(Frame(stamp, _to_global(world, world.ego_at(time_s)), annotations))
    _draw_map(world, task.root / map_file(task.seed, task.name))
    kind = "night" if task.night else "day"
    return SceneLog(task.name, logfile, f"Generated street, {kind}, seed {task.seed}", tuple(frames))


def _make_frame(
    task: _Task, world: World, logfile: str, when: tuple[int, int, float, int]
) -> tuple[Annotation, ...]:
    """Write the seven files of a key frame and return its annotations."""
    number, index, time_s, stamp = when
    solids = solids_at(world, time_s)
    points, _ = scan(world, solids, np.random.default_rng([task.seed, number, index, len(CAMERAS)]))
    (task.root / sensor_file(logfile, LIDAR, stamp)).write_bytes(points.astype("<f4").tobytes())
    seen, covered = np.zeros(len(world.actors), np.int64), np.zeros(len(world.actors), np.int64)
    for place, view in enumerate(views()):
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
