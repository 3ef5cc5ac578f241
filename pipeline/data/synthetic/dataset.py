"""Generates a dataset in the layout of nuScenes v1.0-mini. The same seed gives the same bits."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import as_completed
from pathlib import Path

from pipeline.data.formats.nuscenes_tables import split_scenes
from pipeline.data.sample import CAMERAS, DataError
from pipeline.data.synthetic.nuscenes_writer import LIDAR, build_tables, write_tables
from pipeline.data.synthetic.scene import SceneTask, make_scene
from pipeline.data.synthetic.scene_log import SceneLog
from pipeline.data.synthetic.sensor_rig import MINI, Rig
from pipeline.json_files import JsonError, read_json
from pipeline.processes import process_pool

EDITION = 4
"""Edition of the generator. It is increased when a change of the code changes the data of a seed."""

NIGHT_EVERY = 5
"""One scene in five is at night."""

Progress = Callable[[int, int], None]
"""Called with the number of finished frames and the number of all frames."""


def generate(
    root: Path,
    seed: int,
    version: str = "v1.0-mini",
    frames_per_scene: int = 20,
    scenes_per_split: Mapping[str, int] | None = None,
    workers: int = 2,
    progress: Progress | None = None,
    rig: Rig = MINI,
) -> None:
    """Write a dataset. If ``root`` holds exactly this dataset already, do nothing.

    The tables are written last, so a folder with tables is complete. The data depend only on the arguments
    before ``workers``, and on the rig.

    Args:
        root: dataset root, made if it does not exist.
        seed: seed of all draws.
        version: name of the tables folder; the devkit's evaluation of mini splits needs ``...mini``.
        frames_per_scene: number of key frames per scene, two per second.
        scenes_per_split: devkit split -> number of scenes; None: ``{"mini_train": 8, "mini_val": 2}``. The
            first names of the split are used.
        workers: number of processes.
        progress: called when frames are finished.
        rig: image size and sweeps.

    Raises:
        DataError: an argument is not valid, or ``root`` holds something else or cannot be written.
    """
    root = Path(root)
    wanted = {"mini_train": 8, "mini_val": 2} if scenes_per_split is None else dict(scenes_per_split)
    request = {
        "edition": EDITION,
        "seed": seed,
        "version": version,
        "frames_per_scene": frames_per_scene,
        "scenes_per_split": wanted,
        **({} if rig == MINI else {"rig": rig.name}),  # older datasets name no rig: theirs is mini
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
        SceneTask(root, seed, name, frames_per_scene, place % NIGHT_EVERY == NIGHT_EVERY - 1, rig)
        for place, name in enumerate(names)
    ]
    logs: dict[str, SceneLog] = {}
    try:
        for log in _work(tasks, workers):
            logs[log.name] = log
            if progress:
                progress(len(logs) * frames_per_scene, len(tasks) * frames_per_scene)
        write_tables(root / f".{version}.part", build_tables(seed, [logs[name] for name in names]))
        (root / "synth.json").write_text(json.dumps(request, indent=1))
        os.replace(root / f".{version}.part", root / version)
    except OSError as problem:
        raise DataError(
            f"{root}: the dataset cannot be written ({problem}); free space or choose another"
        ) from problem


def _scene_names(wanted: Mapping[str, int]) -> list[str]:
    names: list[str] = []
    for split, count in wanted.items():
        available = split_scenes(split)
        if not 0 <= count <= len(available):
            raise DataError(f"split {split!r} has {len(available)} scenes, cannot make {count}")
        names += available[:count]
    if not names or len(set(names)) != len(names):
        raise DataError(f"expected splits that share no scene and at least one scene, got {dict(wanted)}")
    return names


def _is_done(root: Path, version: str, request: Mapping[str, object]) -> bool:
    """Return whether this dataset is here already; refuse to write over another one."""
    mark = root / "synth.json"
    if not (root / version).exists():
        return False
    try:
        existing = read_json(mark, dict) if mark.exists() else None
    except JsonError as problem:
        raise DataError(f"{problem}; it says what was generated here, choose another folder") from problem
    if existing == request:
        return True
    what = (
        "a dataset that was not generated" if existing is None else f"another generated dataset ({existing})"
    )
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


def _work(tasks: list[SceneTask], workers: int) -> Iterator[SceneLog]:
    """Yield the scenes as they are finished."""
    if min(workers, len(tasks)) == 1:
        yield from map(make_scene, tasks)
        return
    with process_pool(min(workers, len(tasks))) as pool:
        for done in as_completed([pool.submit(make_scene, task) for task in tasks]):
            yield done.result()
