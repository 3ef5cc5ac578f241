"""The generated datasets of a recipe, made before its trials start."""

import os
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from threading import Event

from experiments.recipes.recipe import SyntheticDataset
from experiments.study.progress import task_bar
from experiments.terminal import Terminal
from pipeline.storage.paths import resolve_path

SIDE_BY_SIDE = 2
"""Datasets that are generated at once, each by as many processes as there are cores."""


def make_datasets(datasets: tuple[SyntheticDataset, ...], console: Terminal) -> None:
    """Generate the datasets of a recipe that are absent, side by side; the others stay as they are.

    A scene is made by one process, so one dataset of few scenes would leave cores idle.

    Raises:
        DataError: a folder holds something else.
    """
    from pipeline.data.synthetic import generate
    from pipeline.data.synthetic.sensor_rig import RIGS

    done: dict[str, tuple[int, int]] = {}
    stopped = Event()

    def make(dataset: SyntheticDataset, advance: Callable[[int, int], None]) -> None:
        def progress(frames: int, total: int) -> None:
            if stopped.is_set():
                raise CancelledError
            done[dataset.root] = frames, total
            parts = list(done.values())
            advance(sum(part for part, _ in parts), sum(whole for _, whole in parts))

        generate(
            resolve_path(dataset.root),
            dataset.seed,
            frames_per_scene=dataset.frames_per_scene,
            scenes_per_split=dict(dataset.scenes),
            workers=os.cpu_count() or 1,
            progress=progress,
            rig=RIGS[dataset.rig],
        )

    roots = ", ".join(dataset.root for dataset in datasets)
    if not datasets:
        return
    with (
        task_bar(console, f"dataset{'s' * (len(datasets) > 1)} {roots}") as advance,
        ThreadPoolExecutor(SIDE_BY_SIDE) as pool,
    ):
        running = [pool.submit(make, dataset, advance) for dataset in datasets]
        try:
            for made in running:
                made.result()
        finally:  # the others end with the scenes that they are at
            stopped.set()
