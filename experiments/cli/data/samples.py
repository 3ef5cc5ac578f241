"""Cut the objects out of samples, and draw samples."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.options import (
    Command,
    OptionError,
    add_cfg_options,
    add_missing_cameras,
    add_split,
    complete_version,
    read_cfg_options,
)

if TYPE_CHECKING:
    from pipeline.data.augmentation.train_pipeline import TrainPipeline


class CutObjects(Command):
    """Write an object database."""

    name = "objects"
    help = "cut the objects of a split out, for GT sampling"
    example = "data objects data/full --out data/full/database"
    goes_on = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        _add_source(parser)
        parser.add_argument("--out", required=True, help="folder of the database")

    def run(self, arguments: Namespace) -> int:
        """Return 0."""
        from experiments.study.progress import task_bar
        from experiments.terminal import Terminal
        from pipeline.data.augmentation.object_database_writer import write_database
        from pipeline.data.formats.open import open_source
        from pipeline.data.source import Reading

        console = Terminal()
        complete_version(arguments, Path(arguments.root))
        reading = Reading(missing_cameras=arguments.missing_cameras)
        source = open_source(arguments.root, arguments.version, arguments.split, reading)
        with task_bar(console, f"cutting {arguments.split}") as advance:
            count = write_database(source, Path(arguments.out), advance)
        console.print(
            f"{arguments.out}: {count} objects; name it as info_path in db_sampler of UnifiedObjectSample",
            soft_wrap=True,
        )
        return 0


class ShowData(Command):
    """Draw samples as a config's train_pipeline makes them."""

    name = "show"
    help = "draw augmented training samples with their boxes"
    example = "data show data/full --config experiments/configs/cmt_voxel0100_r50_800x320_cbgs.py"
    goes_on = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        _add_source(parser)
        parser.add_argument("--config", help="config whose train_pipeline is applied (nothing is)")
        add_cfg_options(parser)
        parser.add_argument(
            "--frames", type=int, default=4, help="how many, spread over the split (%(default)s)"
        )
        parser.add_argument("--epoch", type=int, default=0, help="training epoch, from 0 (%(default)s)")
        parser.add_argument(
            "--seed", type=int, default=0, help="decides what is drawn at random (%(default)s)"
        )
        parser.add_argument("--out", default="drawn", help="folder of the pictures (%(default)s)")

    def run(self, arguments: Namespace) -> int:
        """Return 0."""
        import cv2
        import numpy as np

        from experiments.terminal import Terminal
        from pipeline.data.augmentation.drawing import draw_sample
        from pipeline.data.formats.open import open_source
        from pipeline.data.source import READ_ALL

        for option, least in (("frames", 1), ("epoch", 0), ("seed", 0)):
            if (given := getattr(arguments, option)) < least:
                raise OptionError(f"--{option} {given}: expected {least} or more")
        pipeline = _read_pipeline(arguments)
        complete_version(arguments, Path(arguments.root))
        reading = replace(
            pipeline.reading if pipeline else READ_ALL, missing_cameras=arguments.missing_cameras
        )
        source = open_source(arguments.root, arguments.version, arguments.split, reading)
        out = Path(arguments.out)
        out.mkdir(parents=True, exist_ok=True)
        console = Terminal()
        for frame in np.linspace(0, len(source) - 1, min(arguments.frames, len(source))).astype(int):
            sample = source[frame]
            if pipeline:
                rng = np.random.default_rng((arguments.seed, arguments.epoch, frame, 1))  # as in training
                sample = pipeline.at(arguments.epoch)(sample, rng)
            path = out / f"{arguments.split}_{frame:05d}.jpg"
            if not cv2.imwrite(str(path), draw_sample(sample)):
                raise OptionError(f"--out {out}: {path.name} cannot be written there; name another folder")
            console.print(f"{path}: {len(sample.points)} points, {len(sample.boxes)} boxes", highlight=False)
        return 0


def _add_source(parser: ArgumentParser) -> None:
    """Add where samples come from."""
    parser.add_argument("root", help="dataset in nuScenes layout, folder of shards, or info file")
    add_split(parser, "train")
    add_missing_cameras(parser)


def _read_pipeline(arguments: Namespace) -> "TrainPipeline | None":
    """Read the train_pipeline of ``--config``; None without that option."""
    if not arguments.config:
        return None
    from pipeline.data.augmentation.train_pipeline import read_train_pipeline
    from pipeline.detector.build import load_config

    pipeline = read_train_pipeline(load_config(arguments.config, read_cfg_options(arguments)).to_dict())
    if pipeline is None:
        raise OptionError(f"{arguments.config}: has no train_dataloader, hence no train_pipeline to draw")
    return pipeline
