"""``biaswise ...`` or ``python -m experiments.cli ...``.

The words are in ``experiments.parser``; what a command does is in ``experiments.commands`` and is
imported when it runs, so that help is instant. Exit codes: 0 done, 1 findings or failed trials, 2 wrong
usage or input.
"""

import errno
import os
import signal
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TextIO

from experiments.parser import build_parser
from pipeline.errors import is_user_error
from pipeline.ray_train.local_cluster import prepare_ray

DONE, FINDINGS, WRONG = 0, 1, 2
ROOT = Path(__file__).parents[1]
INTERRUPTED = 130  # what shells use for Ctrl-C: 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``biaswise``; None takes them from the process.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser(bench=words[:1] == ["bench"]).parse_args(words)
    module, _, function = arguments.run.partition(":")
    _prepare_process(arguments)
    try:
        return int(getattr(import_module(f"experiments.commands.{module}"), function)(arguments))
    except (ValueError, RuntimeError) as error:
        if not is_user_error(error):
            raise
        print(f"biaswise: error: {error}", file=sys.stderr)
        return WRONG
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
        return WRONG


def _prepare_process(arguments: Namespace) -> None:
    """Set up what holds for the whole process: warnings, signals, and the settings that Ray reads."""
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
    """Say a warning of ours in a line; where in the code it was noticed helps only with those of others."""
    ours = Path(filename).is_relative_to(ROOT) and "site-packages" not in filename
    text = f"biaswise: warning: {message}\n"
    (file or sys.stderr).write(
        text if ours else warnings.formatwarning(message, category, filename, lineno, line)
    )


def _leave(number: int, frame: FrameType | None) -> None:
    """End as on Ctrl-C, so that Ray and scratch folders are cleared away."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
