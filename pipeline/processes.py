"""How the processes that a command starts end with it.

Ctrl-C reaches all processes of a terminal. The command says that it was interrupted; the others end without a
word.
"""

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


def end_at_ctrl_c() -> None:
    """Let Ctrl-C end this process at once: it holds nothing that is worth keeping."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def leave_ctrl_c_to_parent() -> None:
    """Let this process go on at Ctrl-C: the one that started it ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def process_pool(size: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes, which end at once if an exception leaves the ``with``.

    Python's own pool would wait for what has been submitted, minutes perhaps.

    Args:
        size: how many.
    """
    # Spawned, not forked: a fork of a process that runs torch or OpenCV threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(size, mp_context=context, initializer=end_at_ctrl_c) as pool:
        try:
            yield pool
        except BaseException:
            for process in [*(pool._processes or {}).values()]:  # Python 3.14 has terminate_workers
                process.terminate()  # the pool is broken then, and gives up all that was submitted
            raise
