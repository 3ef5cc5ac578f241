"""``biaswise data``: make, convert and verify datasets."""

from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from experiments.storage.study_folder import StudyError
from experiments.study.progress import task_bar

if TYPE_CHECKING:
    from pipeline.data.augmentation.train_pipeline import TrainPipeline


def synth(arguments: Namespace) -> int:
    """Generate a dataset."""
    from pipeline.data.synthetic import generate
    from pipeline.data.synthetic.sensor_rig import RIGS

    console = Console()
    with task_bar(console, f"generating {arguments.root}") as advance:
        generate(
            Path(arguments.root),
            arguments.seed,
            arguments.version,
            arguments.frames,
            _scenes(arguments.scenes),
            arguments.workers,
            advance,
            RIGS[arguments.rig],
        )
    console.print(f"{arguments.root} is there; `biaswise data check {arguments.root}` verifies it")
    return 0


def _scenes(text: str) -> dict[str, int]:
    found = {}
    for part in text.split(","):
        split, equals, number = part.partition("=")
        if not equals or not number.isdecimal():
            raise StudyError(f"--scenes {text}: cannot read {part!r}; expected e.g. mini_train=8,mini_val=2")
        found[split] = int(number)
    return found


def shard(arguments: Namespace) -> int:
    """Convert splits of a dataset to shards."""
    from pipeline.data.formats.shard_writer import Run, one_by_one, write_shards

    if arguments.workers < 1:
        raise StudyError(f"--workers {arguments.workers}: expected 1 or more files to be written at once")
    console = Console()
    with ExitStack() as stack:
        run: Run = one_by_one
        if arguments.workers > 1:
            from experiments.cluster.shard_tasks import ray_writers  # Ray takes seconds to start

            run = stack.enter_context(ray_writers(arguments.workers))
        for split in arguments.split:
            with task_bar(console, f"sharding {split}") as advance:
                write_shards(
                    Path(arguments.root),
                    arguments.version,
                    split,
                    arguments.out,
                    advance,
                    arguments.points,
                    run,
                )
    return 0


def check(arguments: Namespace) -> int:
    """Verify a dataset or shards; 1 if there are problems."""
    from pipeline.data.formats.verify import check as verify

    console = Console()
    with task_bar(console, f"checking {arguments.path}") as advance:
        report = verify(Path(arguments.path), arguments.version, advance)
    for name, count in report.counts.items():
        console.print(f"{name:32} {count:>9}", highlight=False)
    for problem in report.problems:
        console.print(f"problem: {problem}", style="red", markup=False, soft_wrap=True)
    return 0 if report.ok else 1


def draw(arguments: Namespace) -> int:
    """Draw samples as a config's train_pipeline makes them."""
    import cv2
    import numpy as np

    from pipeline.data.augmentation.drawing import draw_sample
    from pipeline.data.formats.open import open_source
    from pipeline.data.source import READ_ALL

    if arguments.frames < 1:
        raise StudyError(f"--frames {arguments.frames}: expected 1 or more")
    pipeline = _read_pipeline(arguments)
    source = open_source(
        arguments.root, arguments.version, arguments.split, pipeline.reading if pipeline else READ_ALL
    )
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    for frame in np.linspace(0, len(source) - 1, min(arguments.frames, len(source))).astype(int):
        sample = source[frame]
        if pipeline:
            rng = np.random.default_rng((arguments.seed, arguments.epoch, frame, 1))  # as in training
            sample = pipeline.at(arguments.epoch)(sample, rng)
        path = out / f"{arguments.split}_{frame:05d}.jpg"
        cv2.imwrite(str(path), draw_sample(sample))
        console.print(f"{path}: {len(sample.points)} points, {len(sample.boxes)} boxes", highlight=False)
    return 0


def _read_pipeline(arguments: Namespace) -> "TrainPipeline | None":
    if not arguments.config:
        return None
    from experiments.commands.trial import read_override
    from pipeline.data.augmentation.train_pipeline import read_train_pipeline
    from pipeline.detector.build import load_config

    pipeline = read_train_pipeline(
        load_config(arguments.config, [read_override(text) for text in arguments.set]).to_dict()
    )
    if pipeline is None:
        raise StudyError(f"{arguments.config}: has no train_dataloader, hence no train_pipeline to draw")
    return pipeline


def database(arguments: Namespace) -> int:
    """Cut the objects of a split out."""
    from pipeline.data.augmentation.object_database import write_database
    from pipeline.data.formats.open import open_source

    console = Console()
    source = open_source(arguments.root, arguments.version, arguments.split)
    with task_bar(console, f"cutting {arguments.split}") as advance:
        count = write_database(source, Path(arguments.out), advance)
    console.print(
        f"{arguments.out}: {count} objects; name it as info_path in db_sampler of UnifiedObjectSample",
        soft_wrap=True,
    )
    return 0


def infos(arguments: Namespace) -> int:
    """Write an info file."""
    from pipeline.data.formats.info_files import write_infos
    from pipeline.data.formats.nuscenes_tables import read_frames

    frames = read_frames(Path(arguments.root), arguments.version, arguments.split)
    write_infos(frames, Path(arguments.out), arguments.version)
    Console().print(f"{arguments.out}: {len(frames)} frames")
    return 0
