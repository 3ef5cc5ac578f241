"""The command line, ``biaswise`` or ``python -m experiments.cli``: one file per command or group.

Commands of ``study`` are a folder; ``study submit`` is in ``cluster.py``, because it talks to a cluster.
"""

from experiments.cli.main import main

__all__ = ["main"]
