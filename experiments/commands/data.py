"""``biaswise data``: make, convert and verify datasets."""

from argparse import Namespace
from pathlib import Path

from rich.console import Console

from experiments.folder import StudyError
from experiments.progress import task_bar


def synth(arguments: Namespace) -> int:
    """Generate a dataset."""
    from pipeline.data.synth import generate
    from pipeline.data.synth.rig import RIGS

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
    from pipeline.data.shards import write_shards

    console = Console()
    for split in arguments.split:
        with task_bar(console, f"sharding {split}") as advance:
            write_shards(Path(arguments.root), arguments.version, split, arguments.out, advance)
    return 0


def check(arguments: Namespace) -> int:
    """Verify a dataset or shards; 1 if there are problems."""
    from pipeline.data.check import check as verify

    console = Console()
    with task_bar(console, f"checking {arguments.path}") as advance:
        report = verify(Path(arguments.path), arguments.version, advance)
    for name, count in report.counts.items():
        console.print(f"{name:32} {count:>9}", highlight=False)
    for problem in report.problems:
        console.print(f"problem: {problem}", style="red", markup=False, soft_wrap=True)
    return 0 if report.ok else 1
