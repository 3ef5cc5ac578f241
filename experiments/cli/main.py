"""All commands, their parser, and how a command ends.

Exit codes: 0 done, 1 findings or failed trials, 2 wrong usage or input, 130 stopped.
"""

import argparse
import errno
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

from experiments.cli.calibrate import Calibrate
from experiments.cli.cluster import CheckCluster, SubmitStudy, WatchCluster
from experiments.cli.data import CheckData, CutObjects, ShowData, SynthesizeData, WriteInfos, WriteShards
from experiments.cli.lint import Lint
from experiments.cli.operators import BenchOperators, ListOperators
from experiments.cli.options import Command, Group
from experiments.cli.plan import ShowPlan
from experiments.cli.study.power import ShowPower
from experiments.cli.study.results import ReportStudy, SyncStudies
from experiments.cli.study.run import ListStudies, ResumeStudy, RunDemo, RunStudy, ShowStatus
from experiments.cli.study.screen import ScreenStudy
from experiments.cli.study.time import TimeStudy
from experiments.cli.throughput import Throughput
from experiments.cli.trial import Evaluate, Train
from experiments.cli.ui import ServeUi
from pipeline.errors import is_user_error
from pipeline.ray_train.local_cluster import prepare_ray
from pipeline.storage.paths import ROOT

DONE, WRONG_USAGE = 0, 2
INTERRUPTED = 130  # what shells use for Ctrl-C: 128 + SIGINT

COMMANDS: tuple[Command | Group, ...] = (
    RunDemo(),
    Group(
        "study",
        "run the trials of a recipe under Ray Tune, judge them, show the results",
        (
            ListStudies(),
            ShowPower(),
            RunStudy(),
            ResumeStudy(),
            ShowStatus(),
            ScreenStudy(),
            TimeStudy(),
            ReportStudy(),
            SyncStudies(),
            SubmitStudy(),
        ),
    ),
    Calibrate(),
    Group(
        "data",
        "make, convert, verify and look at datasets",
        (SynthesizeData(), WriteShards(), CheckData(), WriteInfos(), CutObjects(), ShowData()),
    ),
    Lint(),
    ShowPlan(),
    Throughput(),
    Group(
        "operators",
        "what the attention implementations can do, and how fast they are",
        (ListOperators(), BenchOperators()),
    ),
    Train(),
    Evaluate(),
    Group("cluster", "check cluster files; watch for spot notices", (CheckCluster(), WatchCluster())),
    ServeUi(),
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="biaswise",
        description="In which layers of a camera-LiDAR detector does bias-aware attention pay off, "
        "and which implementation should compute it there?",
        epilog="example: biaswise demo",
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.declare(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``biaswise``; None takes them from the process.

    Returns:
        The exit code.
    """
    arguments = build_parser().parse_args(argv)
    _prepare_process(arguments)
    try:
        return int(arguments.run(arguments))
    except (ValueError, RuntimeError) as error:
        if not is_user_error(error):
            raise
        print(f"biaswise: error: {error}", file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt:
        print("biaswise: interrupted; what is done is kept, the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = error.filename or "the disk"
        print(
            f"biaswise: error: {place}: no space left; make room, the same command goes on", file=sys.stderr
        )
        return WRONG_USAGE


def _prepare_process(arguments: argparse.Namespace) -> None:
    """Set up warnings, signals, and the environment variables that Ray reads when it is imported."""
    warnings.showwarning = _warn
    signal.signal(signal.SIGTERM, _leave)
    if "RAY_JOB_STOP_SIGNAL" in os.environ:  # a Ray started in the background passes on SIGINT ignored
        signal.signal(signal.SIGINT, _leave)
    if "address" not in arguments:  # commands that have it talk to the cluster at that address
        prepare_ray()


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of this project as one line, and another library's with its place in the code."""
    ours = Path(filename).is_relative_to(ROOT) and "site-packages" not in filename
    text = f"biaswise: warning: {message}\n"
    (file or sys.stderr).write(
        text if ours else warnings.formatwarning(message, category, filename, lineno, line)
    )


def _leave(number: int, frame: FrameType | None) -> None:
    """Raise what Ctrl-C raises, so that Ray is stopped and scratch folders are removed."""
    raise KeyboardInterrupt
