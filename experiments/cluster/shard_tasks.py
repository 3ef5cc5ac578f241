"""The files of a split written by tasks of Ray, on this machine or over a cluster.

A task whose process or machine dies is started again elsewhere; a file is whole or not there.
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
"""Times that a file is begun again because its process or machine died; a fourth has a cause that stays."""


@contextmanager
def ray_writers(workers: int) -> Iterator[Run]:
    """Join the cluster of ``RAY_ADDRESS``, or start Ray here, for as long as files are written.

    Args:
        workers: files that are written at once, a core each.

    Yields:
        What ``write_shards`` takes as ``run``.
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
        except RayTaskError as error:  # what the task raised, without the trace of how Ray came to it
            raise error.cause from None
        except RayError as error:
            raise DataError(
                f"a task that writes shards died {RETRIES + 1} times ({type(error).__name__}); start again "
                "with fewer --ray-tasks, finished files are kept"
            ) from error
