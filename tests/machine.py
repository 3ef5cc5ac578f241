"""What tests ask of their machine: a port that is free, the processes that a process has started."""

import os
import random
import socket
from collections.abc import Set
from contextlib import suppress

PORTS = range(20_000, 32_768)
"""Below those that Linux gives to outgoing connections, which could take a port before a server has it, and
above those of Ray's workers (10002 to 19999)."""


def unused_port() -> int:
    """Return a port on which nothing listens."""
    while True:
        port = random.SystemRandom().choice(PORTS)  # not as seeded: two test processes would choose the same
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def offspring(pid: int = 0, but: Set[int] = frozenset()) -> dict[int, str]:
    """Return the living descendants of a process: pid -> command line.

    Args:
        pid: the process; 0 is this one.
        but: descendants to leave out.
    """
    import psutil  # a GPU host may lack it, and needs ports alone

    found = {}
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid or os.getpid()).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it has just ended
                if process.pid not in but and process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = " ".join(process.cmdline()).strip()
    return found
