"""The command line: ``biaswise ...`` or ``python -m experiments.cli ...``.

The words are in ``experiments.parser``; what a command does is in ``experiments.commands`` and is
imported when it runs, so that help is instant. Exit codes: 0 done, 1 findings or failed trials, 2 wrong
usage or input.
"""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType

from experiments.parser import build_parser
from pipeline.refusal import is_refusal

DONE, FINDINGS, WRONG = 0, 1, 2
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
    signal.signal(signal.SIGTERM, _leave)
    if "RAY_JOB_STOP_SIGNAL" in os.environ:  # a Ray started in the background passes on SIGINT ignored
        signal.signal(signal.SIGINT, _leave)
    try:
        return int(getattr(import_module(f"experiments.commands.{module}"), function)(arguments))
    except (ValueError, RuntimeError) as error:
        if not is_refusal(error):
            raise
        print(f"biaswise: error: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("biaswise: interrupted; what is done is kept, the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _leave(number: int, frame: FrameType | None) -> None:
    """End as on Ctrl-C, so that Ray and scratch folders are cleared away."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
