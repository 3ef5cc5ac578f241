"""``biaswise submit``: run a study on a Ray cluster as a job."""

import sys
from argparse import Namespace

from experiments.recipes.registry import recipe


def submit(arguments: Namespace) -> int:
    """Send a study, show its log, return what its driver returns."""
    chosen = recipe(arguments.recipe)
    from experiments.cluster.job_submission import (  # imports Ray: 1 s
        default_address,
        follow,
        runtime_env,
        send,
    )

    words = ["study", "run", chosen.name]
    if arguments.concurrent is not None:
        words += ["--concurrent", str(arguments.concurrent)]
    if arguments.storage:
        words += ["--storage", arguments.storage]
    if arguments.no_sync:
        words += ["--no-sync"]
    address = arguments.address or default_address()
    job = send(words, address, runtime_env(arguments.home))
    _say(f"job {job.name} at {address}: `ray job logs -f {job.name}`, `ray job stop {job.name}`\n")
    if arguments.no_wait:
        return 0
    try:
        return follow(job, _say)
    except KeyboardInterrupt:
        _say(f"\nno longer watching; job {job.name} goes on until `ray job stop {job.name}`\n")
        return 0


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
