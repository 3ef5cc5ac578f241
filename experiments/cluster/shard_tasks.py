"""Writes the files of a split by Ray tasks, on this machine or on a cluster.

Ray starts a task again if its process or machine dies. A file is complete or does not exist.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.data.formats.shard_writer import Entry, Part, Run, write_part
from pipeline.data.sample import DataError
from pipeline.ray_train.local_cluster import ray_session

RETRIES = 3
"""Times that a task is started again after its process or machine died; a fourth has a lasting cause."""


@contextmanager
def ray_writers(workers: int) -> Iterator[Run]:
    """Join the cluster of ``RAY_ADDRESS``, or start Ray on this machine, while files are written.

    Args:
        workers: files that are written at once; each takes one core.

    Yields:
        The argument ``run`` of ``write_shards``.
    """
    with ray_session(cpus=workers):
        yield partial(_run, workers)


def _run(workers: int, parts: Sequence[Part]) -> Iterator[Entry]:
    task = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")(write_part)
    waiting: deque[Part] = deque(parts)
    running: list[Any] = []
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(task.remote(waiting.popleft()))
        done, running = ray.wait(running)
        try:
            yield from ray.get(done)
        except RayTaskError as error:  # the task's own error, without Ray's traceback
            raise error.cause from None
        except RayError as error:
            raise DataError(
                f"a task that writes shards died {RETRIES + 1} times ({type(error).__name__}); start again "
                "with fewer --ray-tasks, finished files are kept"
            ) from error
