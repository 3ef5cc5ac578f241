"""All commands, their parser, and how a command ends.

Exit codes: 0 done, 1 findings or failed trials, 2 wrong usage or input, 130 Ctrl-C, 143 SIGTERM.
"""

import argparse
import errno
import io
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

from experiments.cli.calibrate import Calibrate
from experiments.cli.cluster import CheckCluster, ShowRuntimeEnv, SubmitStudy, WatchCluster
from experiments.cli.data.datasets import CheckData, SynthesizeData, WriteInfos, WriteShards
from experiments.cli.data.samples import CutObjects, ShowData
from experiments.cli.lint import Lint
from experiments.cli.operators import BenchOperators, ListOperators
from experiments.cli.options import Command, Group
from experiments.cli.plan import ShowPlan
from experiments.cli.study.new import NewStudy
from experiments.cli.study.power import ShowPower
from experiments.cli.study.results import ReportStudy, SyncStudies
from experiments.cli.study.run import ListStudies, ResumeStudy, RunDemo, RunStudy, ShowStatus
from experiments.cli.study.screen import ScreenStudy
from experiments.cli.study.time import TimeStudy
from experiments.cli.throughput import Throughput
from experiments.cli.trial import Evaluate, Train
from experiments.cli.ui import ServeUi
from pipeline.errors import is_user_error
from pipeline.printable import printable, say
from pipeline.ray_train.local_cluster import prepare_ray
from pipeline.storage.paths import ROOT, home

DONE, WRONG_USAGE = 0, 2
SIGNALLED = 128
"""Added to the number of the signal that ended a command, as shells do: 130 for Ctrl-C, 143 for SIGTERM."""

UNUSABLE_PATH = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EROFS, errno.ENXIO, errno.ENOTEMPTY),
}
"""What the system says about a path that it cannot use; the path comes from the user."""
RECEIVED: list[int] = []
"""Signals that stopped the command; Tune raises a KeyboardInterrupt of its own in place of ours."""
MAX_PATH, MAX_SENTENCE = 200, 2000
"""Characters of a path and of a sentence that are shown: they may quote a file."""

COMMANDS: tuple[Command | Group, ...] = (
    RunDemo(),
    Group(
        "study",
        "run the trials of a recipe under Ray Tune, judge them, show the results",
        (
            ListStudies(),
            NewStudy(),
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
    Group(
        "cluster",
        "check cluster files; watch for spot notices; find what Ray jobs get",
        (CheckCluster(), WatchCluster(), ShowRuntimeEnv()),
    ),
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
    if text := _other_code():
        say(f"biaswise: note: {text}", error=True)
    RECEIVED.clear()
    _prepare_process(arguments)
    try:
        return int(arguments.run(arguments))
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        return _interrupted(RECEIVED[-1] if RECEIVED else signal.SIGINT, argv, arguments.goes_on)
    except SystemExit as left:
        if left.code != signal.SIGTERM:  # of Ray's own handler, while Ray starts
            raise
        return _interrupted(signal.SIGTERM, argv, arguments.goes_on)
    except (ValueError, RuntimeError, OSError) as error:
        sentence = _sentence(error)
        if not sentence:
            raise
        say(f"biaswise: error: {_short(sentence, MAX_SENTENCE)}", error=True)
        return WRONG_USAGE


def _other_code() -> str:
    """Return that the current folder is a checkout, and not the one whose code runs; empty if it is not."""
    here = Path.cwd()
    if here.samefile(ROOT) or not (here / "experiments/cli/main.py").is_file():
        return ""
    return (
        f"this folder is a checkout of Biaswise, but the code that runs is that of {ROOT}, and so are its "
        f"configs; data, runs and mlflow.db are those of {home()}. `make test` makes its own environment"
    )


def _sentence(error: Exception) -> str:
    """Return what an error tells the user; empty if it is a bug."""
    if is_user_error(error):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'the disk'}: no space left; make room, the same command goes on"
    if isinstance(error, OSError) and error.errno in UNUSABLE_PATH:
        name = str(error) if error.filename is None else error.filename  # pyarrow puts it into the text
        return f"{_short(name, MAX_PATH)}: {os.strerror(error.errno)}; check the path"
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of pathlib
        return f"{error}; check the path"
    return ""


def _short(name: object, most: int) -> str:
    """Return a path or a sentence for a message; of a very long one its two ends."""
    text = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else str(name)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"


def _prepare_process(arguments: argparse.Namespace) -> None:
    """Set up warnings, signals, and the environment variables that Ray reads when it is imported."""
    for stream in (sys.stdout, sys.stderr):  # ▲ and file names that are no UTF-8, in any locale
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
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
    text = text if ours else warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(printable(text))


def _leave(number: int, frame: FrameType | None) -> None:
    """Raise what Ctrl-C raises, so that Ray is stopped and scratch folders are removed."""
    RECEIVED.append(number)
    raise KeyboardInterrupt


def _interrupted(number: int, argv: Sequence[str] | None, goes_on: bool) -> int:
    """Say what is kept and which command goes on; return the exit code."""
    words = shlex.join(["biaswise", *(sys.argv[1:] if argv is None else argv)])
    kept = "what is done is kept, the same command goes on"
    kept = kept if goes_on else "nothing of it is kept, the same command begins anew"
    say(f"biaswise: interrupted; {kept}: {words}", error=True)
    return SIGNALLED + number
