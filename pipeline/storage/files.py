"""A trial's folder has one writer at a time.

When a study is killed, its workers live on for moments, until they notice. The worker that resumes the
trial waits for them: two writers would spoil rows and checkpoints.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import TrialError

LOCK = ".writer"
"""File in the trial's folder that its writer holds a lock on."""

PATIENCE_S = 120.0
"""A worker whose Ray has died ends within seconds; after two minutes the other is no leftover."""


@contextmanager
def exclusive_writer(folder: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Be the one that writes into a trial's folder; the lock ends with the process at the latest.

    Args:
        folder: the trial's; made if missing.
        patience_s: how long to wait for another writer.

    Raises:
        TrialError: another one is still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_s
    with (folder / LOCK).open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TrialError(
                        f"{folder}: another process has been running this trial for {patience_s:.0f} s; "
                        f"end it, or wait for it"
                    ) from None
                time.sleep(0.2)
        yield
