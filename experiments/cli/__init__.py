"""The command line, ``biaswise`` or ``python -m experiments.cli``: one file per group of commands."""

from experiments.cli.main import main

__all__ = ["main"]
