"""Make, convert and verify datasets."""

from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from pathlib import Path

from experiments.cli.options import (
    MINI,
    Command,
    OptionError,
    add_missing_cameras,
    add_split,
    add_version,
    complete_version,
)


class SynthesizeData(Command):
    """Generate a dataset."""

    name = "synth"
    help = "generate a dataset in nuScenes layout"
    example = "data synth --out data/mini --seed 7"
    goes_on = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--out", default="data/mini", help="folder to write to (%(default)s)")
        parser.add_argument("--seed", type=int, default=7, help="decides everything in it (%(default)s)")
        parser.add_argument("--version", default=MINI, help="name of the tables folder (%(default)s)")
        parser.add_argument("--frames", type=int, default=20, help="key frames per scene (%(default)s)")
        parser.add_argument(
            "--scenes",
            default="mini_train=8,mini_val=2",
            metavar="SPLIT=N,...",
            help="scenes per split (%(default)s)",
        )
        parser.add_argument("--processes", type=int, default=2, metavar="N", help="(%(default)s)")
        parser.add_argument(
            "--rig",
            choices=("mini", "full"),
            default="mini",
            help="full: 1600 x 900 pixels, LiDAR at 20 Hz; mini: a quarter of it, only key frames "
            "(%(default)s)",
        )

    def run(self, arguments: Namespace) -> int:
        """Return 0."""
        from experiments.study.progress import task_bar
        from experiments.terminal import Terminal
        from pipeline.data.synthetic import generate
        from pipeline.data.synthetic.sensor_rig import RIGS

        for option, value, least in (
            ("--frames", arguments.frames, 1),
            ("--processes", arguments.processes, 1),
            ("--seed", arguments.seed, 0),
        ):
            if value < least:
                raise OptionError(f"{option} {value}: expected {least} or more")
        console = Terminal()
        with task_bar(console, f"generating {arguments.out}") as advance:
            generate(
                Path(arguments.out),
                arguments.seed,
                arguments.version,
                arguments.frames,
                _read_scenes(arguments.scenes),
                arguments.processes,
                advance,
                RIGS[arguments.rig],
            )
        console.print(f"{arguments.out} is there; `biaswise data check {arguments.out}` verifies it")
        return 0


def _read_scenes(text: str) -> dict[str, int]:
    """Read ``--scenes``: split -> number of scenes."""
    scenes = {}
    for part in text.split(","):
        split, equals, number = part.partition("=")
        if not equals or not number.isdecimal():
            raise OptionError(f"--scenes {text}: cannot read {part!r}; expected e.g. mini_train=8,mini_val=2")
        scenes[split] = int(number)
    return scenes


class WriteShards(Command):
    """Convert splits of a dataset to shards."""

    name = "shard"
    help = "convert a dataset to Parquet shards"
    example = "data shard data/mini --split mini_train --out data/mini_shards"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("root", help="dataset in nuScenes layout, or an info file (of one split)")
        add_version(parser)
        parser.add_argument("--split", action="append", required=True, help="devkit split; may be repeated")
        parser.add_argument("--out", required=True, help="folder or URI (s3://...) of the shards")
        parser.add_argument(
            "--points",
            choices=("float32", "float16"),
            default="float32",
            help="float16: half the bytes, coordinates rounded by up to 16 mm within 64 m (%(default)s)",
        )
        parser.add_argument(
            "--ray-tasks",
            type=int,
            default=1,
            metavar="N",
            help="files written at once by tasks of Ray, here or on the cluster of RAY_ADDRESS; 1: without "
            "Ray (%(default)s)",
        )
        add_missing_cameras(parser)

    def run(self, arguments: Namespace) -> int:
        """Return 0."""
        from experiments.study.progress import task_bar
        from experiments.terminal import Terminal
        from pipeline.data.formats.shard_writer import Run, one_by_one, write_shards

        if arguments.ray_tasks < 1:
            raise OptionError(
                f"--ray-tasks {arguments.ray_tasks}: expected 1 or more files to be written at once"
            )
        console = Terminal()
        complete_version(arguments, Path(arguments.root))
        with ExitStack() as stack:
            run: Run = one_by_one
            if arguments.ray_tasks > 1:
                from experiments.cluster.shard_tasks import ray_writers

                run = stack.enter_context(ray_writers(arguments.ray_tasks))
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
                        arguments.missing_cameras,
                    )
        return 0


class CheckData(Command):
    """Verify a dataset or shards."""

    name = "check"
    help = "verify a dataset, an info file or shards, file by file"
    example = "data check data/mini"
    goes_on = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("path", help="dataset in nuScenes layout, info file, or folder of shards")
        add_version(parser)

    def run(self, arguments: Namespace) -> int:
        """Return 1 if there are problems."""
        from experiments.study.progress import task_bar
        from experiments.terminal import Terminal
        from pipeline.data.formats.verify import check

        console = Terminal()
        complete_version(arguments, Path(arguments.path))
        with task_bar(console, f"checking {arguments.path}") as advance:
            report = check(Path(arguments.path), arguments.version, advance)
        for name, count in report.counts.items():
            console.print(f"{name:32} {count:>9}", highlight=False)
        for problem in report.problems:
            console.print(f"problem: {problem}", style="red", soft_wrap=True)
        return 0 if report.ok else 1


class WriteInfos(Command):
    """Write an info file."""

    name = "infos"
    help = "write an info file of format 1.1, for mmdet3d's own NuScenesDataset"
    example = "data infos data/mini --out data/mini/nuscenes_infos_train.pkl"
    goes_on = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("root", help="dataset in nuScenes layout, or an info file of format 1.0 or 1.1")
        add_split(parser, "train")
        parser.add_argument("--out", required=True, help="the .pkl file")

    def run(self, arguments: Namespace) -> int:
        """Return 0."""
        from experiments.terminal import Terminal
        from pipeline.data.formats.infos.writer import write_infos
        from pipeline.data.formats.records import read_records

        complete_version(arguments, Path(arguments.root))
        frames = read_records(arguments.root, arguments.version, arguments.split)
        write_infos(frames, Path(arguments.out), arguments.version)
        Terminal().print(f"{arguments.out}: {len(frames)} frames")
        return 0
